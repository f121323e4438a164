"""Fixed masks: which steps are guided is known before the loop begins.

Source: Golnari et al. 2023, arXiv 2305.09847, drops the last steps; the others are variations on
it.
"""

from __future__ import annotations

from collections.abc import Callable

from sdbench.variants.arguments import matched
from sdbench.variants.schedule import GuidanceSchedule, ScheduleRule, StepCount, mask_of
from sdbench.variants.variant import Method, Variant

SELECTIVE = "Golnari et al. 2023, arXiv 2305.09847"


def _plain(rule: ScheduleRule) -> Callable[[str, str | None], Variant]:
    """A variant that takes no argument."""

    def build(name: str, argument: str | None) -> Variant:
        if argument is not None:
            raise ValueError(f"expected no argument, not '{argument}'")
        return Variant(name, rule)

    return build


def _counted(
    make: Callable[[int, int], GuidanceSchedule], grammar: str
) -> Callable[[str, str | None], Variant]:
    """A variant that counts steps, or a share; `make` gets the loop's length and the count."""

    def build(name: str, argument: str | None) -> Variant:
        if not argument:
            raise ValueError(f"expected {grammar}")
        count = StepCount.parse(argument)
        return Variant(name, lambda steps: make(steps, count.of(steps)), of_share=count.percent)

    return build


def _window(name: str, argument: str | None) -> Variant:
    start, length = map(int, matched(argument, r"(\d+)\+(\d+)", "window:START+LENGTH"))
    return Variant(name, lambda steps: GuidanceSchedule.window(steps, start, length))


def _every(name: str, argument: str | None) -> Variant:
    (period,) = map(int, matched(argument, r"([1-9]\d*)", "every:PERIOD of at least 1"))
    return Variant(name, lambda steps: GuidanceSchedule.every(steps, period))


def _random(name: str, argument: str | None) -> Variant:
    text, seed = matched(argument, r"(\d+%?|\d+\.\d+%)@(\d+)", "random:COUNT@SEED")
    count = StepCount.parse(text)
    return Variant(
        name,
        lambda steps: GuidanceSchedule.random(steps, count.of(steps), seed=int(seed)),
        of_share=count.percent,
    )


def _mask(name: str, argument: str | None) -> Variant:
    digits = "mask: and one 1 (guided) or 0 (unguided) per step"
    (bits,) = matched(argument, r"([01]+)", digits)
    schedule = GuidanceSchedule(mask_of(bits))
    return Variant(name, lambda steps: schedule)


METHODS = (
    Method(
        "cfg",
        "cfg",
        "the baseline: every step guided",
        _plain(GuidanceSchedule.full),
        source="Ho and Salimans 2022, arXiv 2207.12598",
        saves_rows=False,
    ),
    Method(
        "unguided",
        "unguided",
        "no step guided",
        _plain(GuidanceSchedule.none),
        group="controls",
        examples=("unguided",),
    ),
    Method(
        "last",
        "last:20%|last:10",
        "last steps unguided",
        _counted(GuidanceSchedule.last, "last:N"),
        source=SELECTIVE,
        examples=("last:25%",),
    ),
    Method(
        "first",
        "first:20%|first:10",
        "first steps unguided",
        _counted(GuidanceSchedule.first, "first:N"),
        examples=("first:2",),
    ),
    Method(
        "window",
        "window:10+13",
        "13 steps from index 10 on unguided",
        _window,
        source=SELECTIVE,
        examples=("window:2+3",),
    ),
    Method("every", "every:2", "one step in two unguided", _every, examples=("every:2",)),
    Method(
        "random",
        "random:10@7",
        "10 steps drawn with seed 7 unguided: a control for placement",
        _random,
        group="controls",
        examples=("random:3@1",),
    ),
    Method(
        "mask",
        "mask:1100...",
        "1 guided, 0 unguided, one digit per step",
        _mask,
        examples=("mask:11101010",),
    ),
    Method(
        "step-ag",
        "step-ag:40%",
        "guided in the first steps only: last:60%",
        _counted(
            lambda steps, count: GuidanceSchedule.last(steps, steps - count),
            "step-ag:N, the first steps that are guided",
        ),
        source="arXiv 2506.08351",
        examples=("step-ag:50%",),
    ),
)
