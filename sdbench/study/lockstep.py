"""Lockstep: calls of one pipeline that advance one step at a time in turn.

A machine's speed drifts from call to call by more than its steps scatter. Where the calls that are
compared take turns, the drift hits all of them alike. Each call runs the pipeline's own loop in a
greenlet, on a copy of the pipeline, and gives way after every step. The turn goes to a call of the
least progress, so that calls of few and of many steps end together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import greenlet
import torch

from sdbench.instruments.steps import GiveWay
from sdbench.instruments.surroundings import Surroundings
from sdbench.models.pipeline import Pipeline
from sdbench.study.observation import Outcome
from sdbench.study.units import Unit
from sdbench.variants.copies import PipelineCopies

Run = Callable[[Unit, Pipeline, GiveWay], Outcome]
"""Runs a unit on a pipeline; that the call fails is an outcome, too."""


@dataclass(frozen=True)
class Alone:
    """A call that cannot take turns, and why."""

    reason: str


def in_lockstep(
    pipe: Pipeline, calls: Sequence[Unit], run: Run
) -> list[tuple[Unit, Outcome | Alone]]:
    """Run calls step by step in turn.

    Args:
        pipe: is not called itself, and is as before afterwards.
        calls: of one round. The first one's identifier decides the order of those whose progress
            is the same, so it is another one in every round.
        run: carries a call out.

    Returns:
        What became of every call, in their order. What went on around them is that of all.

    Raises:
        ValueError: another pipeline is at work on the denoiser.
    """
    if not calls:
        return []
    order = random.Random(calls[0].id)
    # Gradients are switched for a whole thread, so no call may switch them on for the others.
    with torch.no_grad(), PipelineCopies(pipe) as copies:
        state = _ThreadState(pipe.device)
        with ExitStack() as undo, Surroundings(pipe.device) as around:
            in_progress = [_InProgress(unit, copies, run) for unit in calls]
            for call in in_progress:
                undo.callback(call.end)

            while waiting := [call for call in in_progress if call.outcome is None]:
                least = min(call.progress for call in waiting)
                call = order.choice([call for call in waiting if call.progress == least])
                call.go_on()
                if call.outcome is None and (changed := state.changes()):
                    call.end()
                    call.outcome = Alone(changed)
    return [(call.unit, _with(call.outcome, around)) for call in in_progress]


def _with(outcome: Outcome | Alone | None, around: Surroundings) -> Outcome | Alone:
    assert outcome is not None
    if isinstance(outcome, Alone):
        return outcome
    return replace(outcome, run=outcome.run | around.columns)


class _InProgress:
    """A call that may be waiting for its turn.

    Attributes:
        progress: share of its steps that it has taken; below 0 where its loop has not begun.
        outcome: None until there is one.
    """

    def __init__(self, unit: Unit, copies: PipelineCopies, run: Run) -> None:
        """Run nothing yet."""
        self.unit = unit
        self.progress = -1.0
        self.outcome: Outcome | Alone | None = None
        self._copies = copies
        self._own = copies.copy()
        self._greenlet = greenlet.greenlet(lambda: run(unit, self._own.pipe, self._give_way))

    def go_on(self) -> None:
        """Give it the modules until it gives way, or is over."""
        with self._copies.given_to(self._own):
            told = self._greenlet.switch()
        if self._greenlet.dead:
            self.outcome = self._with_copied_bytes(told)
        else:
            self.progress = told

    def end(self) -> None:
        """Leave a call that is not over, as an exception would."""
        if self._greenlet:
            with self._copies.given_to(self._own):
                self._greenlet.throw()

    def _give_way(self, progress: float) -> None:
        assert self._greenlet.parent is not None
        self._greenlet.parent.switch(progress)

    def _with_copied_bytes(self, outcome: Outcome) -> Outcome:
        """The outcome of a student's call says how much memory its weights took."""
        if self.unit.variant.student is None:
            return outcome
        return replace(
            outcome, run=outcome.run | {"copied_bytes": self._copies.copied_bytes(self._own)}
        )


class _ThreadState:
    """What torch keeps for a thread, and a call in progress must not change for the others."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._read()

    def changes(self) -> str:
        """What a call left changed where it gave way; empty where nothing is."""
        now = self._read()
        changed = [name for name, value in now.items() if value != self._before[name]]
        return f"it holds {changed[0]} over its steps" if changed else ""

    def _read(self) -> dict[str, object]:
        return {
            "gradients": torch.is_grad_enabled(),
            "inference mode": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled(self._device.type),
            "autocast on the CPU": torch.is_autocast_enabled("cpu"),
            "a default dtype": torch.get_default_dtype(),
        }
