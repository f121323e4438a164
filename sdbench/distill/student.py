"""The weights that learn: low-rank layers on the teacher's own denoiser, or a copy of all of it.

With LoRA teacher and student are one module: with the adapter off it is the teacher, and there is
no second copy of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from peft import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn

from sdbench.distill.examples import Examples
from sdbench.distill.low_rank_layers import add_lora, add_teacher, layers_off, teacher_on
from sdbench.distill.settings import float32_only
from sdbench.models.guidance_embedding import (
    add_projection,
    embedded,
    place_of_projection,
    takes_guidance,
)
from sdbench.models.pipeline import Pipeline, denoisers_of
from sdbench.models.student_layers import ADAPTER, load_lora, low_rank
from sdbench.models.students import DENOISER_FILE, EMBEDDING_FILE, LORA_FILE, strength
from sdbench.records.files import write_whole
from sdbench.variants.hooks import replaced
from sdbench.variants.student_weights import given_scale


class Strength:
    """Makes low-rank layers for a range of scales count in every row by its own w.

    Args:
        denoiser: with these layers.
        w_range: the lowest and the highest scale.

    Attributes:
        scale: w of every row of the next call, or one for all of them.
    """

    scale: Float[Tensor, " rows"]

    def __init__(self, denoiser: nn.Module, w_range: tuple[float, float]) -> None:
        self.w_range = w_range
        # On the second factor alone, since the base's own output counts whole in every row.
        for layer in low_rank([denoiser]):
            layer.lora_B[ADAPTER].register_forward_hook(self._scaled)

    def _scaled(
        self, layer: nn.Module, inputs: Any, update: Float[Tensor, "rows ..."]
    ) -> Float[Tensor, "rows ..."]:
        share: Any = strength(self.w_range, self.scale)
        return update * share.to(update).reshape(-1, *[1] * (update.ndim - 1))


@dataclass(frozen=True)
class Student:
    """What is trained.

    Args:
        pipe: the pipeline that it was made for.
        denoiser: the module whose call is the student's prediction.
        teacher: the module that is frozen; the same one for LoRA.
        alpha: of the LoRA, over its rank.
        projection: of the embedding of w, where the student is given w that way.
        by_guidance: it is given w by the denoiser's own `guidance` input.
        strength: how much of the LoRA counts in each row, where it learns many scales.
        has_own_teacher: the teacher has low-rank layers, too.
    """

    pipe: Pipeline
    denoiser: nn.Module
    teacher: nn.Module
    alpha: float = 1.0
    projection: nn.Linear | None = None
    by_guidance: bool = False
    strength: Strength | None = None
    has_own_teacher: bool = False

    @property
    def is_copy(self) -> bool:
        """Whether it is a copy of all weights, not low-rank layers on them."""
        return self.denoiser is not self.teacher

    @property
    def learnt(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        weights = self.denoiser.named_parameters()
        return {name: weight for name, weight in weights if weight.requires_grad}

    def teaching(self) -> AbstractContextManager[Any]:
        """While it holds, the pipeline is the teacher's, and no gradients are recorded."""
        if self.is_copy:
            return torch.no_grad()
        return (teacher_on if self.has_own_teacher else layers_off)(self.denoiser)

    def given(self, examples: Examples) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the student's call gets, which is to be the next one."""
        if self.strength is not None:
            self.strength.scale = examples.scale

        if self.by_guidance:
            return examples.args, examples.kwargs | {"guidance": examples.scale.to(examples.cond)}
        if self.projection is None:
            return examples.args, examples.kwargs
        embedding = embedded(self.pipe, examples.scale).to(examples.cond.device)
        return examples.args, examples.kwargs | {"timestep_cond": embedding}

    def in_place(self, guidance_scale: float) -> AbstractContextManager[None]:
        """While it holds, the pipeline runs the student; one of many scales is given this w."""
        if self.strength is not None:
            self.strength.scale = torch.tensor([guidance_scale])
            return given_scale(self.pipe, guidance_scale, by_guidance=self.by_guidance)
        # Low-rank layers are on the pipeline's own denoiser already.
        if not self.is_copy:
            return nullcontext()
        return replaced(self.pipe, self._place, self.denoiser)

    @property
    def _place(self) -> str:
        """The name under which the pipeline holds the teacher."""
        return "unet" if getattr(self.pipe, "unet", None) is self.teacher else "transformer"

    def save(self, folder: Path) -> None:
        """Write the weights as `student_in` reads them.

        A LoRA is also what stock `load_lora_weights` reads, in float16.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self.is_copy:
            _write(folder / DENOISER_FILE, self.denoiser.state_dict())
            return

        _write(folder / LORA_FILE, self._lora_weights())
        if self.projection is not None:
            _write(folder / EMBEDDING_FILE, {"weight": self.projection.weight})

    def _lora_weights(self) -> dict[str, Shaped[Tensor, "*shape"]]:
        """The low-rank layers by the names that loaders know."""
        weights: dict[str, Shaped[Tensor, "*shape"]] = get_peft_model_state_dict(
            self.denoiser, adapter_name=ADAPTER
        )
        # Loaders take W + B A where the file holds no alpha.
        scaled = {
            name: weight * self.alpha if ".lora_B." in name else weight
            for name, weight in weights.items()
        }
        return {f"{self._place}.{name}": weight.detach().half() for name, weight in scaled.items()}


def lora_student(
    pipe: Pipeline,
    *,
    rank: int,
    alpha: int,
    targets: Sequence[str],
    w_range: tuple[float, float] | None = None,
) -> Student:
    """Put low-rank layers on a pipeline's denoiser, at first without effect; see `add_lora`.

    Args:
        pipe: the teacher's.
        rank: of every layer.
        alpha: as `add_lora` takes it.
        targets: as `add_lora` takes them.
        w_range: it learns all scales between these two. It is given w by the denoiser's own
            `guidance` input where that has one (Flux), else by a projection of the embedding of w,
            at first without effect.

    Raises:
        ValueError: as `add_lora` and `add_projection` say; a projection for a base in half
            precision.
    """
    denoiser: Any = _only_denoiser(pipe)
    if w_range is None:
        add_lora(denoiser, rank=rank, alpha=alpha, targets=targets)
        return Student(pipe, denoiser, denoiser, alpha / rank)

    if denoiser.dtype != torch.float32:
        raise ValueError(float32_only(whole=False))
    by_guidance = takes_guidance(denoiser)
    if not by_guidance:
        place_of_projection(pipe, denoiser)  # refuses before anything is changed

    add_lora(denoiser, rank=rank, alpha=alpha, targets=targets)
    projection = None if by_guidance else add_projection(pipe, denoiser)
    shares = Strength(denoiser, w_range)
    return Student(pipe, denoiser, denoiser, alpha / rank, projection, by_guidance, shares)


def halved_student(pipe: Pipeline, file: Path, *, has_own_teacher: bool) -> Student:
    """Put a student's low-rank layers on a pipeline's denoiser to learn, and again as the teacher.

    The first ones begin as what the others are, and replace them in the end. So a student of few
    steps is one LoRA of the same size; layers on top of the others would be a second one that
    every file has to carry.

    Args:
        pipe: the base's.
        file: the student's weights.
        has_own_teacher: its layers are the teacher, too; without, that is the base.

    Raises:
        ValueError: as `load_lora` says, or the layers are for another module than the denoiser.
    """
    denoiser: Any = _only_denoiser(pipe)
    loads: Any = pipe
    load_lora(loads, file)
    denoiser.requires_grad_(False)
    if has_own_teacher:
        add_teacher(denoiser)

    for layer in low_rank([denoiser]):
        for factor in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
            # An optimiser's steps are lost in half precision.
            factor.weight.data = factor.weight.data.float()
            factor.weight.requires_grad_(True)
    return Student(pipe, denoiser, denoiser, has_own_teacher=has_own_teacher)


def full_student(pipe: Pipeline) -> Student:
    """Copy the denoiser whole, next to a frozen teacher: what conventional distillation trains."""
    denoiser = _only_denoiser(pipe)
    if any(weight.dtype != torch.float32 for weight in denoiser.parameters()):
        raise ValueError(float32_only(whole=True))
    denoiser.requires_grad_(False)
    return Student(pipe, copy.deepcopy(denoiser).requires_grad_(True), denoiser)


def _only_denoiser(pipe: Pipeline) -> nn.Module:
    denoisers = denoisers_of(pipe)
    if len(denoisers) > 1:
        raise ValueError(f"{type(pipe).__name__} has two denoisers: only one can be distilled")
    return denoisers[0]


def _write(file: Path, weights: Mapping[str, Shaped[Tensor, "*shape"]]) -> None:
    # safetensors takes contiguous tensors alone.
    plain = {name: weight.detach().contiguous() for name, weight in weights.items()}
    write_whole(file, lambda stream: stream.write(save(plain, metadata={"format": "pt"})))
