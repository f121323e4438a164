"""A schedule that `sdbench plan` found, from its file."""

from __future__ import annotations

from sdbench.variants.schedule import GuidanceSchedule, mask_text, read_schedule
from sdbench.variants.variant import Method, Variant


def _plan(name: str, argument: str | None) -> Variant:
    if not argument:
        raise ValueError("expected plan:FILE, a schedule that `sdbench plan` wrote")
    schedule = GuidanceSchedule.load(argument)
    scale = read_schedule(argument).get("guided_scale")

    content = f"{mask_text(schedule.mask)} {scale}"
    return Variant(name, lambda steps: schedule, guidance_scale=scale, content=content)


METHODS = (
    Method(
        "plan",
        "plan:FILE",
        "a schedule that `sdbench plan` found",
        _plan,
        examples=("plan:FILE",),
    ),
)
