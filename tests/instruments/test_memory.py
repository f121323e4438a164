import pytest
import torch

from sdbench.instruments.memory import (
    AllocatorTrace,
    CudaTrace,
    MemoryEvent,
    Peak,
    check_order,
    interval_peaks,
)

MIB = 1 << 20


def tensor_of(mib):
    return torch.empty(mib * MIB, dtype=torch.uint8)


def test_cpu_peaks_are_exact_per_interval():
    with AllocatorTrace() as trace:
        kept = tensor_of(1)
        trace.mark("one")
        first, second = tensor_of(2), tensor_of(3)
        del first, second
        trace.mark("six")
        trace.mark("idle")
        third = tensor_of(4)
    assert trace.peaks == [
        Peak("one", MIB, None),
        Peak("six", 6 * MIB, None),
        Peak("idle", MIB, None),
    ]
    assert (trace.peak_bytes, trace.live_bytes) == (6 * MIB, 5 * MIB)
    assert kept.nbytes + third.nbytes == trace.live_bytes


def test_releasing_memory_from_before_the_trace_counts_as_nothing():
    with AllocatorTrace():
        seen_by_another_trace = tensor_of(8)
    unseen = tensor_of(8)
    with AllocatorTrace() as trace:
        del unseen, seen_by_another_trace
        kept = tensor_of(1)
        trace.mark("one")
    assert trace.peaks == [Peak("one", MIB, None)]
    assert trace.live_bytes == kept.nbytes


def test_memory_inside_operations_is_seen():
    matrix = torch.ones(256, 256)
    with AllocatorTrace() as trace:
        (matrix @ matrix + matrix).sum().item()
        trace.mark("product")
    assert trace.peaks[0].peak_bytes >= 2 * matrix.nbytes
    assert trace.live_bytes == 0


def test_a_trace_is_closed_after_an_exception():
    with pytest.raises(KeyError), AllocatorTrace():
        raise KeyError
    with AllocatorTrace() as trace:
        trace.mark("again")
    assert trace.peaks == [Peak("again", 0, None)]


def test_a_released_address_can_be_used_again():
    changes = [(1, 10), (1, -10), (1, 20), (1, -20), (2, -99)]
    events = [MemoryEvent(time, pointer, change) for time, (pointer, change) in enumerate(changes)]
    assert interval_peaks(events) == ([20], 0)


class FakeCuda:
    """Counters of a CUDA allocator, moved by hand."""

    def __init__(self, monkeypatch):
        self.now = self.peak = 0
        for name in (
            "reset_peak_memory_stats",
            "max_memory_allocated",
            "max_memory_reserved",
            "memory_allocated",
        ):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def change(self, amount):
        self.now += amount
        self.peak = max(self.peak, self.now)

    def reset_peak_memory_stats(self, device):
        self.peak = self.now

    def max_memory_allocated(self, device):
        return self.peak

    def max_memory_reserved(self, device):
        return 2 * self.peak

    def memory_allocated(self, device):
        return self.now


def test_cuda_peaks_are_reset_per_interval_and_leave_loading_out(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    cuda.change(1000)
    cuda.change(-900)
    with CudaTrace("cuda:0") as trace:
        cuda.change(50)
        cuda.change(-50)
        trace.mark("step 0")
        cuda.change(20)
        trace.mark("step 1")
        cuda.change(200)
        cuda.change(-200)
    assert trace.peaks == [Peak("step 0", 150, 300), Peak("step 1", 120, 240)]
    assert (trace.peak_bytes, trace.reserved_bytes, trace.live_bytes) == (320, 640, 120)


@pytest.mark.gpu
def test_cuda_peaks_of_known_allocations():
    weights = torch.empty(MIB, dtype=torch.uint8, device="cuda")
    with CudaTrace("cuda") as trace:
        base = torch.cuda.memory_allocated()
        temporary = torch.empty(4 * MIB, dtype=torch.uint8, device="cuda")
        del temporary
        trace.mark("four")
        trace.mark("idle")
    assert [peak.peak_bytes - base for peak in trace.peaks] == [4 * MIB, 0]
    check_order(
        peak_bytes=trace.peak_bytes, live_bytes=trace.live_bytes, weights_bytes=weights.nbytes
    )


def test_order_of_figures_is_asserted():
    check_order(peak_bytes=3, live_bytes=2, weights_bytes=2)
    with pytest.raises(AssertionError, match="peak_bytes=1"):
        check_order(peak_bytes=1, live_bytes=2, weights_bytes=0)
