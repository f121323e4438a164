"""A denoising loop while it runs, and whose loop runs in this thread.

Pipelines that share a denoiser or a ControlNet each have wrappers on it. A wrapper acts only on the
calls of its own pipeline's loop. Nothing in such a call says whose it is. But a thread runs one
loop at a time, or one within another's callback, so it is enough to know which began last.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sdbench.variants.trace import Step


@dataclass(eq=False)
class Run:
    """One loop of one pipeline call, from `set_timesteps` on.

    `fitted_scale` is that of the first guided step, `random_state` that of the global generator at
    the start. `iterable` is the length of what its progress bar runs over and `total` what the bar
    was told, 0 where it was told none.
    `is_left` is set where a network ran after its end. `order` is that in which its pipeline asks for both halves, once it has, in one call
    or in two; it `is_told` where it is more than the usual one. A loop is known of once its trace
    is. It is over after its last step, or where its
    pipeline left it before; it is broken where that is still to be told.
    """

    iterations: int = 0
    iterable: int = 0
    total: int = 0
    index: int = 0
    step: Step | None = None
    fitted_scale: Float[Tensor, ""] | None = None
    random_state: UInt8[Tensor, " bytes"] | None = None
    order: tuple[str, ...] = ()
    in_one_call: bool = False
    is_told: bool = False
    is_known: bool = False
    is_over: bool = False
    is_left: bool = False
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
