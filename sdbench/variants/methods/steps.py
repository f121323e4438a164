"""Fewer steps, all of them guided: the control for whatever saves evaluations."""

from __future__ import annotations

from sdbench.variants.arguments import matched
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Method, Variant


def _steps(name: str, argument: str | None) -> Variant:
    (count,) = map(int, matched(argument, r"([1-9]\d*)", "steps:N of at least 1"))
    return Variant(name, GuidanceSchedule.full, num_steps=count)


METHODS = (
    Method(
        "steps",
        "steps:35",
        "full guidance with fewer steps: the control at equal work",
        _steps,
        group="controls",
        examples=("steps:6",),
    ),
)
