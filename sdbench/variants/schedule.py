"""Which steps of a denoising loop are guided, as rules, texts and files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from sdbench.records.files import NONE, NUMBER, parsed, require
from sdbench.records.texts import read_text

Mask = tuple[bool, ...]


def mask_text(mask: Mask) -> str:
    """One letter per step, 1 where it is guided."""
    return "".join("01"[guided] for guided in mask)


def mask_of(text: str) -> Mask:
    """The mask of a text such as "1101".

    Raises:
        ValueError: another letter than 0 and 1.
    """
    if set(text) - {"0", "1"}:
        raise ValueError(f"mask '{text}' may hold only 0 and 1")
    return tuple(letter == "1" for letter in text)


@dataclass(frozen=True)
class GuidanceSchedule:
    """A mask over the iterations of a denoising loop.

    Args:
        mask: one entry per iteration of the loop, True where the step is guided.
        scheduler: class of the only scheduler that it is made for; any other is then refused.
    """

    mask: Mask
    scheduler: str | None = None

    def __post_init__(self) -> None:
        """Refuse a schedule without steps."""
        if not self.mask:
            raise ValueError("a schedule needs at least one step")

    @property
    def nfe(self) -> int:
        """Denoiser rows per image: two for a guided step, one for an unguided one."""
        return len(self.mask) + sum(self.mask)

    @classmethod
    def from_mask(cls, mask: Iterable[bool]) -> GuidanceSchedule:
        """A schedule from any sequence of truth values."""
        return cls(tuple(bool(guided) for guided in mask))

    @classmethod
    def load(cls, path: str | Path) -> GuidanceSchedule:
        """The schedule of a file that `sdbench plan` wrote.

        Raises:
            ValueError: the file cannot be read or is no schedule file.
        """
        content = read_schedule(path)
        return cls(mask_of(content["mask"]), content["scheduler"])

    @classmethod
    def full(cls, steps: int) -> GuidanceSchedule:
        """Every step guided: classifier-free guidance as it is."""
        return cls._without(steps, ())

    @classmethod
    def none(cls, steps: int) -> GuidanceSchedule:
        """No step guided."""
        return cls._without(steps, range(steps))

    @classmethod
    def last(cls, steps: int, count: int) -> GuidanceSchedule:
        """The last `count` steps unguided (Golnari et al., arXiv 2305.09847)."""
        return cls._without(steps, range(steps - _checked(count, steps, "last"), steps))

    @classmethod
    def first(cls, steps: int, count: int) -> GuidanceSchedule:
        """The first `count` steps unguided."""
        return cls._without(steps, range(_checked(count, steps, "first")))

    @classmethod
    def window(cls, steps: int, start: int, length: int) -> GuidanceSchedule:
        """`length` steps from index `start` on unguided."""
        if start < 0 or length < 0 or start + length > steps:
            raise ValueError(f"window {start}+{length} does not fit in {steps} steps")
        return cls._without(steps, range(start, start + length))

    @classmethod
    def every(cls, steps: int, period: int) -> GuidanceSchedule:
        """One step in `period` unguided: the last of each group."""
        if period < 1:
            raise ValueError(f"every takes a period of at least 1, not {period}")
        return cls._without(steps, range(period - 1, steps, period))

    @classmethod
    def random(cls, steps: int, count: int, *, seed: int) -> GuidanceSchedule:
        """`count` steps drawn without replacement unguided: the control for any placement.

        A draw by itself is any mask of that count, each with the same chance. Over the draws of
        seeds 0, 1, 2, ... every step is unguided equally often, to within one. Draws of another
        count or another number of steps have nothing to do with these.
        """
        return cls._without(steps, _dealt(steps, _checked(count, steps, "random"), seed))

    @classmethod
    def _without(cls, steps: int, unguided: Iterable[int]) -> GuidanceSchedule:
        dropped = set(unguided)
        return cls(tuple(step not in dropped for step in range(steps)))


ScheduleRule = Callable[[int], GuidanceSchedule]
"""From the number of iterations that a loop really runs to its schedule."""


def _checked(count: int, steps: int, name: str) -> int:
    if not 0 <= count <= steps:
        raise ValueError(f"{name} takes between 0 and {steps} steps, not {count}")
    return count


def _dealt(steps: int, count: int, draw: int) -> list[int]:
    """The steps of a draw, as hands of cards are dealt: all are used before any comes again."""
    # As many hands as use up whole decks are one deal, which is shuffled by itself.
    hands = steps // math.gcd(steps, count)
    deal, last = divmod(draw, hands)
    rng = np.random.default_rng((steps, count, deal))

    hand: list[int] = []
    rest: list[int] = []
    for _ in range(last + 1):
        hand, rest = rest[:count], rest[count:]
        if len(hand) < count:
            # A step is in a hand once, so the new deck fills it up with others.
            deck = rng.permutation(steps).tolist()
            others = [step for step in deck if step not in hand][: count - len(hand)]
            hand += others
            rest = [step for step in deck if step not in others]
    return hand


def read_schedule(path: str | Path) -> dict[str, Any]:
    """What stands in a schedule file: `mask`, `scheduler`, and how they were found.

    `guided_scale` is there where the guided steps have their own scale.

    Raises:
        ValueError: the file cannot be read or is no schedule file.
    """
    try:
        content = parsed(json.loads, read_text(Path(path)))
    except OSError as error:
        raise ValueError(f"schedule file '{path}' cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"schedule file '{path}' is not JSON: {error}") from None
    settings = content if isinstance(content, dict) else {}
    if not _is_mask(settings.get("mask")) or not isinstance(settings.get("scheduler"), str):
        raise ValueError(
            f"schedule file '{path}' does not hold a mask of 0 and 1 and the scheduler it is for"
        )

    require(settings, {"guided_scale": (*NUMBER, NONE)}, source=f"schedule file '{path}'")
    scale = settings.get("guided_scale")
    if scale is not None and not 1 < scale < 1e6:
        raise ValueError(f"schedule file '{path}': a guided_scale of {scale} is no guidance")
    return settings


def _is_mask(text: Any) -> bool:
    return isinstance(text, str) and bool(text) and not set(text) - {"0", "1"}


@dataclass(frozen=True)
class StepCount:
    """A number of steps as a user writes it: `10`, or `20%` of a loop of unknown length."""

    value: Fraction
    percent: bool

    @classmethod
    def parse(cls, text: str) -> StepCount:
        """Read `10` or `20%`.

        Raises:
            ValueError: not a number, a share outside 0 to 100 %, or a count that is negative or not
                whole.
        """
        percent = text.endswith("%")
        try:
            # Fraction knows exponents too: a short text would stand for a number of any length.
            value = Fraction(re.sub(r"[^\d./-]", "x", text.removesuffix("%")))
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"'{text}' is neither a number of steps nor a percentage") from None
        if percent and not 0 <= value <= 100:
            raise ValueError(f"'{text}' is not between 0% and 100%")
        if not percent and (value < 0 or value.denominator != 1):
            raise ValueError(f"'{text}' is not a whole number of steps")
        return cls(value, percent)

    def of(self, steps: int) -> int:
        """Whole steps of a loop of this length.

        This is the only place where a share is rounded: exactly, half to even.
        """
        return round(self.value * steps / 100) if self.percent else int(self.value)
