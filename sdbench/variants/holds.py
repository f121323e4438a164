"""Which pipelines use a denoiser for now, and which of them changes it.

Pipelines may share a denoiser. Schedules of theirs live side by side, since a schedule acts on the
calls of its own pipeline only. A student's weights and an accelerator change the denoiser itself,
for all who call it: those are refused where another pipeline is at work on it, and the other way
round. Copies of one pipeline that take turns (`copies.py`) have the denoiser one at a time, so each
one's holds are put aside while another runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import nn

from sdbench.models.copied import owner_of
from sdbench.models.pipeline import Pipeline, Scheduler, denoisers_of, schedulers_of

Purpose = Literal["guidance schedule", "student", "accelerator", "precision", "lockstep"]
_LOCK = threading.Lock()


@dataclass(frozen=True, eq=False)
class _Hold:
    """One pipeline's use of its denoisers; the schedulers are those that it had at the start."""

    pipe: Pipeline
    purpose: Purpose
    denoisers: Sequence[nn.Module]
    schedulers: Sequence[Scheduler]

    @property
    def owner(self) -> Pipeline:
        """The pipeline, or the one that it is a copy of."""
        return owner_of(self.pipe)

    @property
    def changes(self) -> bool:
        """Whether other callers of the denoiser would notice."""
        return self.purpose != "guidance schedule"

    @property
    def parts(self) -> set[int]:
        """What can be shared, by identity: also within a compiled or another wrapper."""
        return {
            id(part)
            for denoiser in self.denoisers
            for part in (*denoiser.modules(), *denoiser.parameters())
        }


_HELD: list[_Hold] = []


class Holds:
    """What a pipeline's copy is doing with its denoisers, while another copy has them."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._aside: list[_Hold] = []

    def take_off(self, pipe: Pipeline) -> None:
        """Put the holds of a pipeline aside."""
        with _LOCK:
            self._aside = [hold for hold in _HELD if hold.pipe is pipe]
            _HELD[:] = [hold for hold in _HELD if hold.pipe is not pipe]

    def put_back(self) -> None:
        """Let the holds that were put aside count again."""
        with _LOCK:
            _HELD.extend(self._aside)
            self._aside = []


@contextmanager
def held(pipe: Pipeline, purpose: Purpose) -> Iterator[None]:
    """Use a pipeline's denoisers for a while.

    Args:
        pipe: a guided pipeline.
        purpose: what for. Of one pipeline, all but a second schedule go together.

    Raises:
        ValueError: a second schedule of this pipeline or of its scheduler; a denoiser that another
            pipeline uses, where one of the two changes it.
    """
    hold = _Hold(pipe, purpose, denoisers_of(pipe), schedulers_of(pipe))
    with _LOCK:
        for other in _HELD:
            _require_compatible(hold, other)
        _HELD.append(hold)
    try:
        yield
    finally:
        with _LOCK:
            _HELD.remove(hold)


def _require_compatible(hold: _Hold, other: _Hold) -> None:
    is_same_pipe = hold.owner is other.owner
    kind = type(hold.pipe).__name__
    if {hold.purpose, other.purpose} == {"guidance schedule"}:
        if is_same_pipe:
            raise ValueError("this pipeline already runs under a guidance schedule")
        if any(own is shared for own in hold.schedulers for shared in other.schedulers):
            raise ValueError(
                f"this {kind} has the same scheduler as a {type(other.pipe).__name__} "
                "that already runs under a guidance schedule: "
                "give it a copy, pipe.scheduler = copy.deepcopy(pipe.scheduler)"
            )

    is_conflict = not is_same_pipe and (hold.changes or other.changes)
    if is_conflict and hold.parts & other.parts:
        raise ValueError(
            f"this {kind} shares its {type(hold.denoisers[0]).__name__} with a "
            f"{type(other.pipe).__name__} that is under a {other.purpose}, "
            f"so it cannot have a {hold.purpose} meanwhile: "
            "leave the other block first, or give one of them a copy of the denoiser"
        )
