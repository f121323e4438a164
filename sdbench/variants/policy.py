"""The protocol of whatever decides, step by step, which rows of a denoiser call are evaluated.

A pipeline guides by `u + w (c - u)`, and sdbench does not touch that. A policy says for which rows
the unconditional prediction u is evaluated, and what the pipeline gets for it: `c - offset` for any
offset that a method uses for `c - u`. So every method runs on every pipeline. A fixed mask is the
policy that answers "all" or "none"; methods with more to say are in `methods/`; many masks at once
are in `branches.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from sdbench.models.pipeline import Scheduler
from sdbench.variants.schedule import GuidanceSchedule, ScheduleRule
from sdbench.variants.trace import Listener

Half = Literal["uncond", "cond"]
HALVES: tuple[Half, Half] = ("uncond", "cond")
"""The two predictions of a guided step, in the order of their rows."""


@dataclass(frozen=True)
class Loop:
    """What is known when a denoising loop begins.

    Args:
        iterations: of the loop.
        shape: of the latents, images first.
        timesteps: of every iteration, in the scheduler's unit.
        sigmas: noise-to-signal ratio at the start of every iteration; NaN where the scheduler does
            not say.
        scheduler: of the pipeline.
        on_cuda: whether the host runs ahead of the device.
        high_steps: the first steps that one of two denoisers takes, the other takes the rest; None
            where one takes all.
    """

    iterations: int
    shape: tuple[int, ...]
    timesteps: Sequence[float]
    sigmas: Sequence[float]
    scheduler: Scheduler
    on_cuda: bool
    high_steps: int | None = None

    @property
    def images(self) -> int:
        """Rows of the latents."""
        return self.shape[0]


class Policy(Listener):
    """Guides as the pipeline does; others override what they change.

    An object serves one call after another.

    Attributes:
        changes: whether it may ask for anything else than the pipeline does.
        plain: whether each half is evaluated whole or not at all, and passed on as it is. Such a
            policy allows what it does not understand: a third evaluation, an output of several
            tensors.
        isolated: whether rows of one image must stay the same, so that no noise may be drawn for
            all.
        needs_sigma: whether it decides by the noise-to-signal ratio, which not all schedulers tell.
        shrinks: whether it evaluates other numbers of rows than those of one and of both halves.
        max_rows: the most rows of one evaluation; None for no limit.
    """

    changes = True
    plain = False
    isolated = False
    needs_sigma = False
    shrinks = False
    max_rows: int | None = None

    @property
    def form(self) -> Any:
        """An output of the denoiser to be filled, where a step evaluates nothing."""
        return None

    def begins(self, loop: Loop) -> None:
        """A loop is about to run; forget the last one."""
        self.loop = loop

    def evaluated(self, step: int) -> list[int] | None:
        """Images whose unconditional prediction is evaluated at a step; None for all.

        It is asked any number of times.
        """
        return None

    def wanted(self, step: int, half: Half) -> list[int] | None:
        """The rows of a half that are evaluated at a step, in this order; None for all."""
        return None if half == "cond" else self.evaluated(step)

    def settings(self, step: int, half: Half) -> Sequence[Any] | None:
        """The setting of the denoiser in which each wanted row is evaluated; None without any."""
        return None

    def begin_setting(self, setting: Any) -> None:
        """Rows of a setting are evaluated next."""

    def is_guided(self, step: int) -> bool:
        """Whether any row is guided at a step."""
        return self.evaluated(step) != []

    def unconditional(
        self,
        step: int,
        cond: Float[Tensor, "images ..."],
        uncond: Float[Tensor, "evaluated ..."] | None,
    ) -> Float[Tensor, "images ..."] | None:
        """What the pipeline gets for the unconditional prediction.

        None stands for what was evaluated, of all images.

        Args:
            step: index in the loop.
            cond: the conditional prediction.
            uncond: the unconditional one of the images that were evaluated, None without any.
        """
        return cond if uncond is None else None

    def passed(
        self,
        step: int,
        half: Half,
        evaluated: Mapping[Half, Float[Tensor, "evaluated ..."]],
        cond: Float[Tensor, "images ..."] | None,
    ) -> Float[Tensor, "images ..."] | None:
        """What the pipeline gets for a half of its call; None for what was evaluated, of all rows.

        Args:
            step: index in the loop.
            half: which one.
            evaluated: the predictions of the rows that this call evaluated, by half.
            cond: the conditional prediction of this step, None where none was evaluated.
        """
        if half == "cond":
            return None
        assert cond is not None
        return self.unconditional(step, cond, evaluated.get("uncond"))


class Observed(Policy):
    """Changes nothing: the pipeline does what it does, and is only watched."""

    changes = False
    plain = True


class FixedMask(Policy):
    """Guides the steps of a schedule and no other.

    Args:
        schedule: which steps are guided, or a rule that makes it from the number of iterations.
    """

    plain = True

    def __init__(self, schedule: GuidanceSchedule | ScheduleRule) -> None:
        """Settle nothing yet: the loop's length is known when it begins."""
        self.schedule = schedule
        self.mask: tuple[bool, ...] = ()

    def begins(self, loop: Loop) -> None:
        """Hold the schedule against the loop.

        Raises:
            ValueError: a schedule of another length, or one that was made for another scheduler.
        """
        super().begins(loop)
        schedule = self.schedule
        if not isinstance(schedule, GuidanceSchedule):
            schedule = schedule(loop.iterations)
        require_length(len(schedule.mask), loop)

        scheduler = type(loop.scheduler).__name__
        if schedule.scheduler not in (None, scheduler):
            raise ValueError(
                f"the schedule is made for {schedule.scheduler} but the pipeline has {scheduler}"
            )
        self.mask = schedule.mask

    def evaluated(self, step: int) -> list[int] | None:
        """All images of a guided step, none of an unguided one."""
        return None if self.mask[step] else []


def require_length(steps: int, loop: Loop) -> None:
    """Refuse a mask that is not of the loop's length.

    Raises:
        ValueError: it is longer or shorter.
    """
    if steps != loop.iterations:
        raise ValueError(f"the schedule has {steps} steps but the loop runs {loop.iterations}")


def policy_of(schedule: GuidanceSchedule | ScheduleRule | Policy | None) -> Policy:
    """The policy of whatever may be asked for; None only observes."""
    if schedule is None:
        return Observed()
    return schedule if isinstance(schedule, Policy) else FixedMask(schedule)
