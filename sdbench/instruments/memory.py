"""Memory of a run: allocator peaks per step on CUDA and CPU.

Both traces share one use: `mark(label)` closes the interval since the previous mark and names it;
the interval's peak includes what was alive when it began. Time is not measured here: the CPU trace
is slow and belongs in an untimed pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from sdbench.instruments.rss import PeakRss

_MARK = "sdbench::memory_mark"


class Peak(NamedTuple):
    """Peak of one interval, in bytes; the CPU's allocator reserves nothing."""

    label: str
    peak_bytes: int
    reserved_bytes: int | None


class CudaTrace:
    """Peaks of torch's CUDA allocator, absolute: with the weights and all else that is alive.

    After exit: `peaks`, and over the whole trace `peak_bytes`, `reserved_bytes` and `live_bytes`
    (alive at the end). Reading and resetting the counters does not synchronise.
    """

    def __init__(self, device: torch.device | str) -> None:
        """Take the device whose allocator is read."""
        self.device = torch.device(device)
        self.peaks: list[Peak] = []

    def __enter__(self) -> Self:
        """Begin."""
        self.peaks = []
        torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def mark(self, label: str) -> None:
        """Close an interval, name it, and start the next from what is alive now."""
        self.peaks.append(self._peak(label))
        torch.cuda.reset_peak_memory_stats(self.device)

    def __exit__(self, *exc: object) -> None:
        """Sum up."""
        intervals = [*self.peaks, self._peak("")]
        self.peak_bytes = max(peak.peak_bytes for peak in intervals)
        self.reserved_bytes = max(peak.reserved_bytes or 0 for peak in intervals)
        self.live_bytes = torch.cuda.memory_allocated(self.device)

    def _peak(self, label: str) -> Peak:
        allocated = torch.cuda.max_memory_allocated(self.device)
        return Peak(label, allocated, torch.cuda.max_memory_reserved(self.device))


class PeakBytes:
    """The most memory during a block: of the device where that is CUDA, else of the process.

    After exit: `peak_bytes`.
    """

    def __init__(self, device: torch.device) -> None:
        """Take where the work runs."""
        self._trace = CudaTrace(device) if device.type == "cuda" else PeakRss()

    def __enter__(self) -> Self:
        """Begin."""
        self._trace.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        """Sum up."""
        self._trace.__exit__(*exc)
        self.peak_bytes = self._trace.peak_bytes


class AllocatorTrace:
    """Peaks of torch's CPU allocator, in bytes allocated since the trace began.

    Memory from before the trace counts as zero, and so does giving it back. Scratch memory that a
    library takes past torch's allocator (BLAS) is not seen, but by `rss.py`; that of oneDNN's
    convolutions is taken from it and is in the peaks. Runs torch's profiler: slow, no place for a
    timing. After exit: `peaks`, and over the whole trace `peak_bytes` and `live_bytes` (alive at
    the end), and `events`.
    """

    def __init__(self) -> None:
        """Start with no peaks."""
        self.peaks: list[Peak] = []
        self.labels: list[str] = []

    def __enter__(self) -> Self:
        """Begin."""
        self.labels = []
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def mark(self, label: str) -> None:
        """Close an interval, name it, and start the next from what is alive now."""
        self.labels.append(label)
        with record_function(_MARK):
            pass

    def __exit__(self, *exc: Any) -> None:
        """Stop the profiler, also after an exception, and sum up."""
        self._profile.__exit__(*exc)
        # The profiler's public tables sum up what is needed event by event.
        results: Any = self._profile.profiler.kineto_results  # type: ignore[union-attr]
        tree = results.experimental_event_tree()
        del self._profile
        self.events = sorted(_memory_events(tree), key=lambda event: event.start_ns)
        peaks, self.live_bytes = interval_peaks(self.events)
        self.peaks = [
            Peak(label, peak, None) for label, peak in zip(self.labels, peaks[:-1], strict=True)
        ]
        self.peak_bytes = max(peaks)


class MemoryEvent(NamedTuple):
    """One line of the profiler's log: an allocation (positive), a release (negative), or a mark.

    The `pointer` of a mark is None.
    """

    start_ns: int
    pointer: int | None
    change_bytes: int


def interval_peaks(events: list[MemoryEvent]) -> tuple[list[int], int]:
    """Peak of each interval between marks, and what is alive at the end.

    The last peak is of the interval after the last mark.
    A release counts only if its allocation was seen: memory from before the first event stays out
    of the sum.
    """
    alive: dict[int, int] = {}
    live = 0
    peaks = [0]
    for event in events:
        if event.pointer is None:
            peaks.append(live)
        elif event.change_bytes > 0:
            alive[event.pointer] = event.change_bytes
            live += event.change_bytes
            peaks[-1] = max(peaks[-1], live)
        else:
            live -= alive.pop(event.pointer, 0)
    return peaks, live


def parts_held(
    events: list[MemoryEvent], labels: list[str], part_of: Callable[[str, str | None], str]
) -> tuple[dict[str, int], dict[str, int]]:
    """What memory was held for, by the intervals in which it was taken and given back.

    Args:
        events: of a trace, in order.
        labels: of the intervals that its marks closed.
        part_of: names what an allocation was for, from the label under which it was taken and the
            one under which it was given back (None: kept to the end).

    Returns:
        Bytes of every part at the moment of the trace's peak, which they sum to, and the most bytes
        of every part.
    """
    parts = _parts(events, labels, part_of)
    alive: dict[int, tuple[str, int]] = {}
    held = Counter[str]()
    most = Counter[str]()
    at_peak = Counter[str]()

    for event in events:
        if event.pointer is None:
            continue

        if event.change_bytes > 0:
            part = parts[event.pointer, event.start_ns]
            alive[event.pointer] = part, event.change_bytes
            held[part] += event.change_bytes
            most[part] = max(most[part], held[part])
            # The whole trace's peak, at which single parts may be below their own.
            if held.total() > at_peak.total():
                at_peak = held.copy()
        elif event.pointer in alive:
            part, size_bytes = alive.pop(event.pointer)
            held[part] -= size_bytes
    return dict(at_peak), dict(most)


def _parts(
    events: list[MemoryEvent], labels: list[str], part_of: Callable[[str, str | None], str]
) -> dict[tuple[int, int], str]:
    """What every allocation was for, by its address and its time."""
    names = iter([*labels, ""])
    label = next(names)
    taken: dict[int, tuple[int, str]] = {}
    parts: dict[tuple[int, int], str] = {}

    for event in events:
        if event.pointer is None:
            label = next(names)
            continue
        # It is given back, or taken again without that being seen.
        if event.pointer in taken:
            start_ns, before = taken.pop(event.pointer)
            parts[event.pointer, start_ns] = part_of(before, label)
        if event.change_bytes > 0:
            taken[event.pointer] = (event.start_ns, label)

    # What is left was kept to the end.
    for pointer, (start_ns, before) in taken.items():
        parts[pointer, start_ns] = part_of(before, None)
    return parts


def _memory_events(nodes: list[Any]) -> Iterator[MemoryEvent]:
    """The CPU allocations and our marks in the profiler's tree of events."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        pending.extend(node.children)
        kind, fields = node.typed
        if kind.name == "Allocation" and fields.device.type == "cpu":
            yield MemoryEvent(node.start_time_ns, fields.ptr, fields.alloc_size)
        elif node.name == _MARK:
            yield MemoryEvent(node.start_time_ns, None, 0)


def check_order(*, peak_bytes: int, live_bytes: int, weights_bytes: int) -> None:
    """Assert `peak >= live >= weights`, all absolute: a trace that breaks it missed something."""
    assert peak_bytes >= live_bytes >= weights_bytes >= 0, (
        f"{peak_bytes=} >= {live_bytes=} >= {weights_bytes=} fails"
    )
