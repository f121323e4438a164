"""A variant on a pipeline: its weights and their format, its accelerator and its guidance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sdbench.models.modular import guiders_of
from sdbench.models.pipeline import Pipeline, denoiser_of
from sdbench.models.registry import own_adapter
from sdbench.variants.accelerators import accelerated
from sdbench.variants.guidance import guided_by
from sdbench.variants.other_scheduler import under_scheduler
from sdbench.variants.pinned_start import pinned_start
from sdbench.variants.policy import Policy
from sdbench.variants.precision import in_precision
from sdbench.variants.schedule import ScheduleRule
from sdbench.variants.student_weights import Turns, listeners_of, student_in, weights_file
from sdbench.variants.trace import Listener, Trace
from sdbench.variants.variant import Variant


@contextmanager
def applied(
    pipe: Pipeline,
    variant: Variant,
    *,
    guidance_scale: float,
    num_steps: int | None = None,
    listeners: Sequence[Listener] = (),
    sequential: bool = False,
    copies_weights: bool = False,
) -> Iterator[Trace]:
    """Run a pipeline as a variant says; it is as before afterwards.

    Args:
        pipe: a guided diffusers pipeline.
        variant: what to carry out; its number of steps and its scale are the caller's to ask for.
        guidance_scale: w that is asked for.
        num_steps: of the baseline, where the variant has steps of its own: they begin where the
            baseline's do.
        listeners: as `guided_by` takes them.
        sequential: as `guided_by` takes it.
        copies_weights: change copies of the weights, as other calls may be in progress on them.

    Yields:
        The trace of `guided_by`.

    Warns:
        RuntimeWarning: a student of few steps runs with another number of steps.

    Raises:
        Unsupported: as `under_scheduler` and `in_precision` say.
        ValueError: as `student_in`, `accelerated` and `guided_by` say; an accelerator with halves
            one after the other.
    """
    with ExitStack() as undo:
        # It comes first: all that follows finds it on the pipeline.
        if variant.scheduler is not None:
            undo.enter_context(under_scheduler(pipe, variant.scheduler))
        if variant.pins_start and num_steps is not None:
            undo.enter_context(pinned_start(pipe, num_steps=num_steps))

        with_weights = undo.enter_context(
            _weights(pipe, variant, guidance_scale, copies_weights=copies_weights)
        )
        listeners = [*with_weights.first, *listeners, *with_weights.last]

        if variant.accelerator is not None:
            if sequential:
                name = variant.accelerator.name
                raise ValueError(
                    f"{name} keeps what one call computed, so both halves must be in it"
                )
            undo.enter_context(accelerated(pipe, variant.accelerator))

        schedule = schedule_of(variant, guidance_scale)
        if variant.guider is not None and guiders_of(pipe):
            undo.enter_context(variant.guider.attach(pipe))
            schedule = None

        guided = guided_by(pipe, schedule, listeners=listeners, sequential=sequential)
        trace = undo.enter_context(guided)
        trace.weights_bytes = with_weights.bytes
        yield trace


class _WithWeights(NamedTuple):
    """A denoiser's weights as a variant has them.

    Attributes:
        first: listeners that set them, before all others.
        last: listeners that watch them.
        bytes: of weights in another number format, with the others that run; None without any.
    """

    first: Sequence[Listener]
    last: Sequence[Listener]
    bytes: int | None


@contextmanager
def _weights(
    pipe: Pipeline,
    variant: Variant,
    guidance_scale: float,
    *,
    copies_weights: bool,
) -> Iterator[_WithWeights]:
    """A student's weights, and the number format of the denoiser."""
    first: list[Listener] = []
    last: list[Listener] = []
    turns: Turns | None = None
    with ExitStack() as undo:
        if variant.student is not None:
            turns = None if variant.guides_none else Turns(denoiser_of(pipe), variant.rule)
            file = Path(variant.student or weights_file(own_adapter(pipe), of_lora=True))
            how: dict[str, Any] = {"turns": turns, "copies_weights": copies_weights}
            undo.enter_context(student_in(pipe, file, guidance_scale=guidance_scale, **how))
            first += [] if turns is None else [turns]
            last = listeners_of(file)

        if variant.precision is None:
            yield _WithWeights(first, last, None)
            return

        # The copies in another format have the student's weights.
        own = in_precision(pipe, variant.precision, leaves_own=copies_weights)
        switch, setting = undo.enter_context(own)
        if turns is not None:
            turns.denoisers += switch.copies
        yield _WithWeights([setting, *first], last, switch.weights_bytes)


def schedule_of(variant: Variant, guidance_scale: float) -> ScheduleRule | Policy | None:
    """What decides a variant's steps; None where its accelerator does so itself."""
    if variant.accelerator is not None and variant.accelerator.guides:
        return None
    return variant.rule if variant.policy is None else variant.policy(guidance_scale)
