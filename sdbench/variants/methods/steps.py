"""Fewer steps, all of them guided: the control for whatever saves evaluations.

They begin at the noise level where the baseline begins (`pinned_start.py`). What the scheduler does
by itself, which is what users of diffusers get, has a name of its own.
"""

from __future__ import annotations

from sdbench.variants.arguments import matched
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Method, Variant


def _steps(name: str, argument: str | None) -> Variant:
    pattern = r"([1-9]\d*)(,stock)?"
    count, stock = matched(argument, pattern, "steps:N or steps:N,stock, N at least 1")
    if stock:
        return Variant(name, GuidanceSchedule.full, num_steps=int(count), stock_start=True)
    # Older versions gave the stock loop this name, so stored calls of theirs must not count as it.
    return Variant(name, GuidanceSchedule.full, num_steps=int(count), content="pinned start")


METHODS = (
    Method(
        "steps",
        "steps:35|steps:35,stock",
        "full guidance with fewer steps, from the baseline's first noise level on: the control at "
        "equal work; `stock`: from wherever the scheduler begins so many",
        _steps,
        group="controls",
        examples=("steps:6",),
    ),
)
