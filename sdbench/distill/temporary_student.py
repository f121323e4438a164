"""A student on a pipeline for the time of a run; afterwards the pipeline is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from sdbench.distill.low_rank_layers import require_bare
from sdbench.distill.settings import Settings
from sdbench.distill.student import Student, full_student, halved_student, lora_student
from sdbench.models.bare_weights import require_own_weights, uncovered
from sdbench.models.guidance_embedding import remove_projection
from sdbench.models.pipeline import Pipeline, denoiser_of


@contextmanager
def temporary_student(
    pipe: Pipeline, settings: Settings, start: Path | None = None
) -> Iterator[Student]:
    """Make the student of a run, and take it off again.

    Args:
        pipe: the teacher's.
        settings: of the run.
        start: weights of the student that a second stage starts from.

    Yields:
        The student; afterwards the pipeline's denoiser is as it was, without the student's layers.

    Raises:
        ValueError: a denoiser that has adapters already, or whose weights a student does not
            reach; or as `lora_student` and `full_student` say.
    """
    with ExitStack() as undo:
        # Without a compiled module around it, which accelerate and diffusers pass over.
        undo.enter_context(uncovered(pipe))
        base: Any = denoiser_of(pipe)
        require_bare(base)
        require_own_weights(base)

        undo.enter_context(_as_before(base))
        # Before the layers are made, since some may be there when making others fails.
        if settings.has_low_rank:
            undo.callback(base.unload_lora)
        student = _made(pipe, settings, start)

        denoiser: Any = student.denoiser
        if student.projection is not None:
            undo.callback(remove_projection, denoiser)
        if settings.checkpoint_gradients:
            denoiser.enable_gradient_checkpointing()
            undo.callback(denoiser.disable_gradient_checkpointing)
        yield student


def _made(pipe: Pipeline, settings: Settings, start: Path | None) -> Student:
    """The student with its first values: those of another one, or by the run's seed alone."""
    if start is not None:
        return halved_student(pipe, start, has_own_teacher=not settings.has_guided_teacher)
    # peft draws the layers' first values from the global generator.
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        if not settings.has_low_rank:
            return full_student(pipe)
        return lora_student(
            pipe,
            rank=settings.rank,
            alpha=settings.alpha,
            targets=settings.targets,
            w_range=settings.w_range,
        )


@contextmanager
def _as_before(base: Any) -> Iterator[None]:
    """Put a module's attributes, memory format and learning weights back, and torch's threads.

    accelerate and peft leave attributes. A resumed run takes on the format and the threads of its
    first part.
    """
    attributes = set(vars(base))
    threads = torch.get_num_threads()
    before = {weight: (weight.requires_grad, weight.stride()) for weight in base.parameters()}
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name in set(vars(base)) - attributes:
            delattr(base, name)

        # The strides too, since the pipeline's sums depend on them to the last bit.
        for weight, (learns, stride) in before.items():
            weight.requires_grad_(learns)
            if weight.stride() != stride:
                weight.data = torch.empty_strided(
                    weight.shape, stride, dtype=weight.dtype, device=weight.device
                ).copy_(weight.data)
