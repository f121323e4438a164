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
from functools import partial
from typing import Any

import greenlet
import torch

from sdbench.instruments.steps import GiveWay
from sdbench.instruments.surroundings import Surroundings
from sdbench.models.pipeline import Pipeline
from sdbench.study.observation import Outcome
from sdbench.study.units import Unit
from sdbench.variants.copies import PipelineCopies

Call = Callable[[Pipeline, GiveWay], Any]
"""Calls a pipeline, which gives way after every step; what it returns is handed on."""


@dataclass(frozen=True)
class Alone:
    """Of a call that cannot take turns: why."""

    reason: str


@dataclass(frozen=True)
class Ended:
    """Of a call that took turns: what it returned, and the bytes of weights that it had copied."""

    returned: Any
    copied_bytes: int


def in_lockstep(
    pipe: Pipeline, units: Sequence[Unit], run: Callable[[Unit, Pipeline, GiveWay], Outcome]
) -> list[tuple[Unit, Outcome | Alone]]:
    """Run a round's units step by step in turn.

    Args:
        pipe: as `take_turns` takes it.
        units: the first one's identifier decides the order of calls whose progress is the same, so
            it is another one in every round.
        run: carries a unit out; that its call fails is an outcome, too.

    Returns:
        What became of every unit. What went on around one went on around all of them.
    """
    if not units:
        return []
    calls = [partial(_carried_out, run, unit) for unit in units]
    with Surroundings(pipe.device) as around:
        ended = take_turns(pipe, calls, seed=units[0].id)
    return [(unit, _outcome(unit, end, around)) for unit, end in zip(units, ended, strict=True)]


def _carried_out(
    run: Callable[[Unit, Pipeline, GiveWay], Outcome], unit: Unit, pipe: Pipeline, give_way: GiveWay
) -> Outcome:
    return run(unit, pipe, give_way)


def _outcome(unit: Unit, end: Ended | Alone, around: Surroundings) -> Outcome | Alone:
    if isinstance(end, Alone):
        return end
    further: dict[str, Any] = dict(around.columns)
    run = end.returned.run
    if unit.variant.student is not None or "copied_bytes" in run:
        further["copied_bytes"] = end.copied_bytes + run.get("copied_bytes", 0)
    return replace(end.returned, run=run | further)


def take_turns(pipe: Pipeline, calls: Sequence[Call], *, seed: str) -> list[Ended | Alone]:
    """Let calls of a pipeline advance one step at a time in turn.

    Args:
        pipe: a guided pipeline. It is not called itself, and is as before afterwards.
        calls: each gets a copy of the pipeline.
        seed: of the order of calls whose progress is the same.

    Returns:
        What each call returned, or why it cannot take turns.

    Raises:
        ValueError: another pipeline is at work on the denoiser.
        BaseException: what a call raises; the others are left.
    """
    order = random.Random(seed)
    # Gradients are switched for a whole thread, so no call may switch them on for the others.
    with torch.no_grad(), PipelineCopies(pipe) as copies, ExitStack() as undo:
        in_progress = [_InProgress(call, copies) for call in calls]
        for call in in_progress:
            undo.callback(call.leave)

        state = _ThreadState(pipe.device)
        while waiting := [call for call in in_progress if call.end is None]:
            call = order.choice(_least(waiting))
            call.go_on()
            if call.end is None and (held := state.changed()):
                call.leave()
                call.end = Alone(f"it holds {held} over its steps")
    return [call.end for call in in_progress if call.end is not None]


def _least(calls: Sequence[_InProgress]) -> list[_InProgress]:
    """The calls of the least progress."""
    least = min(call.progress for call in calls)
    return [call for call in calls if call.progress == least]


class _InProgress:
    """A call that may be waiting for its turn.

    Attributes:
        progress: share of its steps that it has taken; below 0 where its loop has not begun.
        end: None until there is one.
    """

    def __init__(self, call: Call, copies: PipelineCopies) -> None:
        """Run nothing yet."""
        self.progress = -1.0
        self.end: Ended | Alone | None = None
        self._copies = copies
        self._own = copies.copy()
        self._greenlet = greenlet.greenlet(lambda: call(self._own.pipe, self._give_way))

    def go_on(self) -> None:
        """Give it the modules until it gives way, or is over."""
        with self._copies.given_to(self._own):
            told = self._greenlet.switch()
        if self._greenlet.dead:
            self.end = Ended(told, self._copies.copied_bytes(self._own))
        else:
            self.progress = told

    def leave(self) -> None:
        """End a call that is not over, as an exception would."""
        if self._greenlet:
            with self._copies.given_to(self._own):
                self._greenlet.throw()

    def _give_way(self, progress: float) -> None:
        assert self._greenlet.parent is not None
        self._greenlet.parent.switch(progress)


class _ThreadState:
    """What torch keeps for a thread: a call that gives way must not have changed it for others."""

    def __init__(self, device: torch.device) -> None:
        """Note how it is."""
        self._kind = device.type
        self._before = self._read()

    def changed(self) -> str:
        """What is otherwise now; empty where nothing is."""
        now = self._read()
        return next((name for name, value in now.items() if value != self._before[name]), "")

    def _read(self) -> dict[str, Any]:
        return {
            "gradients": torch.is_grad_enabled(),
            "inference mode": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled(self._kind),
            "a default dtype": torch.get_default_dtype(),
        }
