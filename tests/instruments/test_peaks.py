"""Peaks by a clock that is set: the fastest round counts."""

import time

import torch

from sdbench.instruments import peaks as module
from sdbench.instruments.peaks import peaks, read_bandwidth


def clock(monkeypatch, lengths):
    """A clock by which rounds take these seconds."""
    ticks = iter([tick for length in lengths for tick in (0.0, length)])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))


def test_peaks_are_those_of_the_fastest_round(monkeypatch):
    monkeypatch.setattr(module, "SIDE", {"cpu": 16})
    monkeypatch.setattr(module, "MEGABYTES", {"cpu": 1})
    clock(monkeypatch, [3.0, 2.0, 0.5, 2.0, 2.0, 4.0, 4.0, 0.25, 4.0, 4.0])
    found = peaks(torch.device("cpu"), torch.float32)
    assert found.flop_s == 2 * 16**3 / 0.5
    assert found.copy_s == 2 * 2**20 / 0.25


def test_a_bandwidth_is_that_of_the_fastest_sum(monkeypatch):
    clock(monkeypatch, [2.0, 0.5, 1.0])
    assert read_bandwidth(torch.device("cpu"), megabytes=1, rounds=3) == 2**20 / 0.5
