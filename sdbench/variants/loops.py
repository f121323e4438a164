"""A denoising loop while it runs, and whose loop runs in this thread.

Pipelines that share a denoiser or a ControlNet each have wrappers on it. A wrapper acts only on the
calls of its own pipeline's loop. Nothing in such a call says whose it is. But a thread runs one
loop at a time, or one within another's callback, so it is enough to know which began last.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sdbench.variants.trace import Step


@dataclass(eq=False)
class Run:
    """One loop of one pipeline call, from `set_timesteps` on.

    Attributes:
        iterations: its length, known from its first evaluation on.
        listed: how many of the scheduler's timesteps its progress bar runs over, 0 where it runs
            over something else.
        iterable: length of what its progress bar runs over, 0 where it is told none.
        total: that its progress bar was told, 0 likewise.
        index: of the step in progress, or of the next one.
        timestep: that a network got last.
        step: in progress.
        fitted_scale: of the first guided step.
        random_state: of the global generator at the start.
        order: in which its pipeline asks for both halves, once it has.
        in_one_call: whether it asks for both at once.
        is_told: whether the order is more than the usual one.
        is_known: its trace knows of it.
        is_over: it has taken its last step, or its pipeline left it before.
        is_left: a network ran after its end.
        is_further: nothing but a progress bar began it, after another loop.
        is_of_its_own: it showed that guidance is of another kind than by two predictions.
        is_broken: it was left early, which is still to be told.
    """

    iterations: int = 0
    listed: int = 0
    iterable: int = 0
    total: int = 0
    index: int = 0
    timestep: Any = None
    step: Step | None = None
    fitted_scale: Float[Tensor, ""] | None = None
    random_state: UInt8[Tensor, " bytes"] | None = None
    order: tuple[str, ...] = ()
    in_one_call: bool = False
    is_told: bool = False
    is_known: bool = False
    is_over: bool = False
    is_left: bool = False
    is_further: bool = False
    is_of_its_own: bool = False
    is_broken: bool = False


@dataclass(eq=False)
class Turn:
    """When a seam's pipeline is the one whose loop runs in this thread.

    Attributes:
        is_open: whether the seam is in place.
    """

    is_open: bool = False
    _outer: Turn | None = None

    def begin(self) -> None:
        """The pipeline has begun a call."""
        current = running()
        if current is not self:
            self._outer = current
            _RUNNING.set(self)

    def end(self) -> None:
        """Its loop is over: the loop goes on in whose callback it ran, if there is one."""
        if _RUNNING.get() is self:
            _RUNNING.set(self._outer)
        self._outer = None


# A context variable, since it is separate for every thread, task and greenlet.
_RUNNING: ContextVar[Turn | None] = ContextVar("sdbench_running", default=None)


def running() -> Turn | None:
    """The turn of the pipeline whose loop runs here, None where no observed one does."""
    turn = _RUNNING.get()
    return turn if turn is not None and turn.is_open else None


def random_state(device: torch.device) -> UInt8[Tensor, " bytes"]:
    """State of the global generator of a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
