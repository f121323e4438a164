"""Masks of one of two denoisers that share the steps, as Wan 2.2's do: `last:50%@high`.

The first one takes the noisy steps, the second one the others. Without a name behind the `@` a mask
is of the whole loop, whoever takes its steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from sdbench.variants.policy import FixedMask, Loop
from sdbench.variants.schedule import GuidanceSchedule, ScheduleRule
from sdbench.variants.trace import Unsupported

Expert = Literal["high", "low"]
"""Of the noisy steps, and of the others."""
EXPERTS: tuple[Expert, ...] = ("high", "low")


class ExpertMask(FixedMask):
    """Guides the steps of one denoiser as a rule says, and all of the other one's.

    Args:
        rule: makes the mask of the steps of that denoiser, given how many they are.
        expert: which one.
    """

    def __init__(self, rule: ScheduleRule, expert: Expert) -> None:
        """Settle nothing yet: whose the steps are is known when the loop begins."""
        super().__init__(rule)
        self.rule = rule
        self.expert = expert

    def begins(self, loop: Loop) -> None:
        """Make the mask of the whole loop.

        Raises:
            Unsupported: one denoiser takes all steps.
        """
        if loop.high_steps is None:
            raise Unsupported(f"one denoiser takes all steps, so there is none of '@{self.expert}'")
        high, low = loop.high_steps, loop.iterations - loop.high_steps
        parts = {"high": (True,) * high, "low": (True,) * low}
        of_expert = {"high": high, "low": low}[self.expert]
        if of_expert:
            parts[self.expert] = self.rule(of_expert).mask
        self.schedule = GuidanceSchedule(parts["high"] + parts["low"])
        super().begins(loop)


def split_expert(argument: str) -> tuple[str, Expert | None]:
    """An argument, and the denoiser that stands behind its `@`, if one does."""
    text, _, name = argument.partition("@")
    for expert in EXPERTS:
        if name == expert:
            return text, expert
    return argument, None


def of_expert(rule: ScheduleRule, expert: Expert) -> Callable[[float], ExpertMask]:
    """The policy of a variant whose mask is of one denoiser."""
    return lambda _: ExpertMask(rule, expert)
