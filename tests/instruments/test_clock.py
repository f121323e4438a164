from itertools import pairwise

import pytest
import torch

from sdbench.instruments.clock import CpuClock, CudaClock, clock_for


def test_cpu_seconds_are_the_difference_of_the_marks(monkeypatch):
    readings = iter([1_000_000_000, 1_250_000_000, 4_250_000_000])
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(readings))
    clock = CpuClock()
    marks = [clock.mark() for _ in range(3)]
    clock.finish()
    assert [clock.seconds(a, b) for a, b in pairwise(marks)] == [0.25, 3.0]


class FakeEvent:
    """An event of a device on which each recorded event happens 2 ms after the one before."""

    reached_ms = 0

    def __init__(self, *, enable_timing):
        assert enable_timing

    def record(self, stream):
        FakeEvent.reached_ms += 2
        self.at_ms, self.stream = FakeEvent.reached_ms, stream

    def elapsed_time(self, end):
        return end.at_ms - self.at_ms


def test_cuda_marks_go_on_the_current_stream_and_synchronise_once(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", calls.append)
    clock = CudaClock(torch.device("cuda:1"))
    marks = [clock.mark() for _ in range(4)]
    assert calls == []
    clock.finish()
    assert calls == [torch.device("cuda:1")]
    assert [clock.seconds(marks[0], mark) for mark in marks] == [0.0, 0.002, 0.004, 0.006]
    assert marks[0].stream == "stream of cuda:1"


def test_clock_follows_the_device():
    assert isinstance(clock_for("cpu"), CpuClock)
    assert isinstance(clock_for("cuda:0"), CudaClock)
    with pytest.raises(ValueError, match=r"no clock for device 'mps'.*cpu, cuda"):
        clock_for("mps")


@pytest.mark.gpu
def test_cuda_clock_sees_device_time_not_launch_time():
    clock = clock_for("cuda")
    matrix = torch.ones(8192, 8192, device="cuda")
    marks = [clock.mark()]
    for repeats in (1, 20):
        for _ in range(repeats):
            matrix @ matrix
        marks.append(clock.mark())
    clock.finish()
    assert clock.seconds(marks[1], marks[2]) > 5 * clock.seconds(marks[0], marks[1]) > 0
