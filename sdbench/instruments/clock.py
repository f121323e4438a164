"""Clocks: cheap marks while a pipeline runs, seconds between them afterwards.

What is timed is decided elsewhere.
"""

from __future__ import annotations

import time
from typing import Any, Protocol, TypeAlias

import torch

Mark: TypeAlias = Any  # opaque: only the clock that made a mark can read it


class Clock(Protocol):
    """What a probe needs of a clock; a fake one in a test gives exact times."""

    def mark(self) -> Mark:
        """Note the present moment, without waiting for the device."""

    def finish(self) -> None:
        """Wait, once, until the device has reached every mark."""

    def seconds(self, start: Mark, end: Mark) -> float:
        """Time from one mark to another, in seconds; valid after `finish`."""


class CpuClock:
    """Host time: on the CPU an operation is done when its call returns."""

    def mark(self) -> int:
        """Note the present moment."""
        return time.perf_counter_ns()

    def finish(self) -> None:
        """Nothing to wait for."""

    def seconds(self, start: int, end: int) -> float:
        """Time from one mark to another."""
        return (end - start) / 1e9


class CudaClock:
    """Device time: events recorded on the current stream, read after one synchronisation."""

    # The host runs ahead of the device, so host time inside the loop is not step time, and a
    # synchronisation there would change what is measured.

    def __init__(self, device: torch.device) -> None:
        """Take the device whose current stream is timed."""
        self.device = device

    def mark(self) -> torch.cuda.Event:
        """Record an event behind the work queued so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def finish(self) -> None:
        """Wait until the device has reached every event."""
        torch.cuda.synchronize(self.device)

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Time from one event to another; torch refuses events that were not yet reached."""
        return start.elapsed_time(end) / 1e3  # from ms


def clock_for(device: torch.device | str) -> Clock:
    """The clock that tells the truth on a device.

    Raises:
        ValueError: For a device type other than `cpu` and `cuda`.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return CpuClock()
    if device.type == "cuda":
        return CudaClock(device)
    raise ValueError(f"no clock for device {device.type!r}; there are clocks for: cpu, cuda")
