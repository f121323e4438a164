"""Another scheduler: the same denoiser, another way to take its steps.

What a prediction means is the model's, so the scheduler is made from the settings of the
pipeline's own (`other_scheduler.py`).
"""

from __future__ import annotations

from dataclasses import replace

from sdbench.variants.other_scheduler import SCHEDULERS
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Method, Variant


def _scheduler(name: str, argument: str | None) -> Variant:
    if argument not in SCHEDULERS:
        raise ValueError(f"expected scheduler:NAME; there are: {', '.join(SCHEDULERS)}")
    return Variant(name, GuidanceSchedule.full, scheduler=argument)


def _add(first: Variant, scheduled: Variant) -> Variant:
    if first.scheduler is not None:
        raise ValueError(f"'{first.name}' has another scheduler already")
    return replace(first, scheduler=scheduled.scheduler)


METHODS = (
    Method(
        "scheduler",
        "scheduler:dpmpp-2m|lora+scheduler:ddim",
        "another scheduler, with the settings of the pipeline's own: full guidance, or any variant "
        f"under it ({', '.join(SCHEDULERS)})",
        _scheduler,
        group="controls",
        add=_add,
        examples=("scheduler:dpmpp-2m",),
        saves_rows=False,
    ),
)
