"""The ways of training and running a denoiser whose memory is compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdbench.distill.low_rank_layers import add_lora, add_teacher
from sdbench.variants.rows import Layout, first_tensor

DenoiserInputs = dict[str, Any]
"""The keyword arguments of a denoiser's call."""


@dataclass(frozen=True)
class Method:
    """One way of training or running a denoiser.

    Args:
        name: in the table.
        trains: it takes steps of an optimiser, instead of running alone.
        has_teacher: what is learnt is the guided prediction of a teacher.
        has_lora: there are low-rank layers.
        halves_steps: the teacher is a student, too, whose two steps one is to make.
        is_fused: they are added to the weights before the run.
    """

    name: str
    trains: bool = False
    has_teacher: bool = False
    has_lora: bool = False
    halves_steps: bool = False
    is_fused: bool = False

    @property
    def is_guided(self) -> bool:
        """Whether the denoiser itself runs both halves of the rows, without a student."""
        return not self.trains and not self.has_lora

    @property
    def copies_teacher(self) -> bool:
        """Whether the teacher is a second denoiser in memory."""
        return self.has_teacher and not self.has_lora

    @property
    def kept_part(self) -> str:
        """The part that the student's making leaves in memory."""
        return "adapter" if self.has_lora or not self.trains else "teacher copy"

    def rows_of(self, call: Mapping[str, Any]) -> Any:
        """What the denoiser runs of a guided step's inputs: all, or the conditional half."""
        return call if self.is_guided else Layout(len(first_tensor(call))).halves(call)[1]


METHODS = {
    method.name: method
    for method in (
        Method("fine-tuning, full", trains=True),
        Method("fine-tuning, LoRA", trains=True, has_lora=True),
        Method("distillation, full", trains=True, has_teacher=True),
        Method("distillation, LoRA", trains=True, has_teacher=True, has_lora=True),
        Method("few steps, LoRA", trains=True, has_teacher=True, has_lora=True, halves_steps=True),
        Method("guided"),
        Method("student, LoRA fused", has_lora=True, is_fused=True),
        Method("student, LoRA not fused", has_lora=True),
    )
}
TRAINING = tuple(name for name, method in METHODS.items() if method.trains)
INFERENCE = tuple(name for name, method in METHODS.items() if not method.trains)


@dataclass(frozen=True)
class Setup:
    """What all methods share.

    Args:
        make: makes the denoiser, in the dtype in which it is loaded.
        inputs_of: its arguments for a guided step, both halves of the rows.
        rank: of the LoRA.
        targets: of the LoRA, as `add_lora` takes them.
        checkpoint_gradients: compute activations again in the backward pass.
    """

    make: Callable[[], Any]
    inputs_of: Callable[[Any], DenoiserInputs]
    rank: int
    targets: Sequence[str]
    checkpoint_gradients: bool

    def add_student(self, denoiser: Any, method: Method) -> None:
        """Put the method's low-rank layers on a denoiser, if it has any."""
        if method.has_lora:
            add_lora(denoiser, rank=self.rank, alpha=self.rank, targets=self.targets)
        if method.halves_steps:
            add_teacher(denoiser)

    def teacher_of(self, denoiser: Any, method: Method) -> Any:
        """The method's teacher: a copy, the denoiser itself with LoRA, or None in fine-tuning."""
        # With LoRA the teacher is the denoiser itself, its adapter off.
        if method.copies_teacher:
            return copy.deepcopy(denoiser).requires_grad_(False)
        return denoiser if method.has_teacher else None
