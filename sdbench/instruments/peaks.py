"""What a machine can do at most: measured, not read from a data sheet.

Each is the fastest of several rounds of a simple operation, so it is what a real kernel can reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

ROUNDS = 5
SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows of the square matrices that are multiplied."""
MEGABYTES = {"cpu": 256, "cuda": 2048}
"""Of the buffer that is copied; more than caches hold."""


class Peaks(NamedTuple):
    """The most that a device does.

    Attributes:
        flop_s: FLOPs per second of a matrix product, 2 per multiply-add.
        copy_s: bytes per second that a copy reads and writes, both together.
    """

    flop_s: float
    copy_s: float


def peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Measure a device; takes a few seconds.

    Args:
        device: a CPU, with the threads that torch has now, or a GPU.
        dtype: of the matrices.
    """
    side = SIDE[device.type]
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    product_s = _fastest(lambda: matrix @ matrix, device)

    source = torch.ones(MEGABYTES[device.type] * 2**20, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy_s = _fastest(lambda: target.copy_(source), device)
    return Peaks(2 * side**3 / product_s, 2 * source.nbytes / copy_s)


def read_bandwidth(device: torch.device, *, megabytes: int = 256, rounds: int = ROUNDS) -> float:
    """Bytes per second at which a device reads memory: the fastest of several sums.

    Args:
        device: that reads.
        megabytes: of the buffer that is summed; more than its caches hold.
        rounds: how often.
    """
    buffer = torch.ones(megabytes * 2**18, device=device)  # of 4 bytes each
    return buffer.nbytes / _fastest(buffer.sum, device, rounds=rounds)


def _fastest(
    work: Callable[[], torch.Tensor], device: torch.device, *, rounds: int = ROUNDS
) -> float:
    """Seconds of the fastest round; the device is waited for."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
