"""What disturbed a call from outside: other processes, and a clock that was held back.

It is recorded and nothing is left out; whether it was too much is decided in
`sdbench.records.disturbed`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from sdbench.instruments.gpu import GpuReading, gpu_reading
from sdbench.models.processor import busy_s, own_s

COUNTERS = (
    "sys/fs/cgroup/cpu.stat",  # a quota of the container: `nr_throttled`
    "sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count",
)


class Reading(NamedTuple):
    """The machine's counters at one moment.

    Attributes:
        wall_s: a monotonic clock.
        busy_s: processor time of everything that runs.
        own_s: that of this process.
        throttled: how often the processor was held back; None where nothing tells.
        gpu: where the calls run on one.
    """

    wall_s: float
    busy_s: float
    own_s: float
    throttled: int | None
    gpu: GpuReading | None = None


class Disturbance:
    """Watches the machine while a block runs; afterwards `columns` are those of the table `runs`.

    `foreign_load` is the processor time that others took (other processes, and what a hypervisor
    gave away), in cores. Counters tick in hundredths of a second, so that of a short call is
    coarse. `foreign_processes` are those on the GPU when the call began or ended. `throttled` says
    that the processor or the GPU was held back. Each is missing where the machine does not tell.
    """

    def __init__(
        self, device: torch.device, read: Callable[[torch.device], Reading] | None = None
    ) -> None:
        """Take where the calls run, and what reads the counters; this machine's by default."""
        self._read = partial(read or reading, device)

    def __enter__(self) -> Self:
        """Begin."""
        self._before = self._read()
        return self

    def __exit__(self, *exc: object) -> None:
        """Compare."""
        before = self._before
        after = self._read()
        # What this process took in the meantime is no disturbance.
        foreign = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)

        gpus = [gpu for gpu in (before.gpu, after.gpu) if gpu is not None]
        held_back = [gpu.held_back for gpu in gpus if gpu.held_back is not None]
        if before.throttled is not None and after.throttled is not None:
            held_back.append(after.throttled != before.throttled)

        others = [gpu.others for gpu in gpus if gpu.others is not None]
        self.columns: dict[str, Any] = {
            "foreign_load": max(0.0, foreign / max(after.wall_s - before.wall_s, 1e-9)),
            "foreign_processes": max(others, default=None),
            "throttled": any(held_back) if held_back else None,
        }


def reading(device: torch.device, root: Path = Path("/")) -> Reading:
    """This machine's counters, of this process those of its threads."""
    gpu = gpu_reading(device) if device.type == "cuda" else None
    return Reading(time.perf_counter(), busy_s(), own_s(), throttle_count(root), gpu)


def throttle_count(root: Path) -> int | None:
    """How often the processor was held back so far, by heat or by a container's quota.

    Returns:
        None where the machine does not tell.
    """
    counts = [count for name in COUNTERS for path in root.glob(name) for count in _counts(path)]
    return sum(counts) if counts else None


def _counts(path: Path) -> list[int]:
    try:
        text = path.read_text()
    except OSError:
        return []
    return [int(count) for count in re.findall(r"^(?:nr_throttled )?(\d+)$", text, re.MULTILINE)]
