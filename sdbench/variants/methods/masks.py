"""Fixed masks: which steps are guided is known before the loop begins.

Source: Golnari et al. 2023, arXiv 2305.09847, drops the last steps; the others are variations on
it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sdbench.variants.arguments import matched
from sdbench.variants.experts import of_expert, split_expert
from sdbench.variants.schedule import GuidanceSchedule, ScheduleRule, StepCount, mask_of
from sdbench.variants.variant import Method, Variant

MOST_DRAWS = 100  # of a variant
DRAWN_AS = "dealt"  # how a number becomes a mask, which the name does not say
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
        text, expert = split_expert(argument)
        count = StepCount.parse(text)

        def rule(steps: int) -> GuidanceSchedule:
            return make(steps, count.of(steps))

        if expert is None:
            return Variant(name, rule, of_share=count.percent)
        return Variant(
            name,
            GuidanceSchedule.full,
            policy=of_expert(rule, expert),
            of_share=count.percent,
        )

    return build


def _window(name: str, argument: str | None) -> Variant:
    start, length = map(int, matched(argument, r"(\d+)\+(\d+)", "window:START+LENGTH"))
    return Variant(name, lambda steps: GuidanceSchedule.window(steps, start, length))


def _every(name: str, argument: str | None) -> Variant:
    (period,) = map(int, matched(argument, r"([1-9]\d*)", "every:PERIOD of at least 1"))
    return Variant(name, lambda steps: GuidanceSchedule.every(steps, period))


def _random(name: str, argument: str | None) -> Variant:
    text, first, last = matched(
        argument,
        r"(\d+%?|\d+\.\d+%)@(\d+)(?:\.\.(\d+))?",
        "random:COUNT@DRAW, or random:COUNT@FIRST..LAST for several draws",
    )
    count = StepCount.parse(text)

    def drawn(name: str, draw: int) -> Variant:
        return Variant(
            name,
            lambda steps: GuidanceSchedule.random(steps, count.of(steps), seed=draw),
            content=DRAWN_AS,
            of_share=count.percent,
            needs_no_time=True,
        )

    if last is None:
        return drawn(name, int(first))
    numbers = _several(int(first), int(last), one=f"random:{text}@{first}")
    draws = {number: drawn(f"random:{text}@{number}", number) for number in numbers}
    return replace(draws[numbers[0]], name=name, draws=draws)


def _several(first: int, last: int, *, one: str) -> range:
    """The draws from the first to the last one.

    Args:
        first: number of a draw.
        last: number of a later one.
        one: the variant of the first alone, for the message.

    Raises:
        ValueError: the last is no later one, or there are too many.
    """
    count = last - first + 1
    if count < 1:
        raise ValueError(f"draws {first}..{last} run backwards: the lower number comes first")
    if count == 1:
        raise ValueError(f"draws {first}..{last} are one draw, which is written {one}")
    if count > MOST_DRAWS:
        raise ValueError(f"draws {first}..{last} are {count}, each a call; at most {MOST_DRAWS}")
    return range(first, last + 1)


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
        "last:20%|last:10|last:50%@high",
        "last steps unguided, of the whole loop or of the denoiser of the noisy steps (@high) or "
        "of the others (@low)",
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
        "random:50%@0..7|random:10@7",
        "steps at random unguided, the mean over eight draws or draw 7 alone: "
        "a control for placement",
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
