"""Energy of a call: what counters that a machine keeps by itself grew by.

What cannot be read is missing. A counter that was reset, stood still or may have begun again twice
is refused; nothing is interpolated, and idle power is told and never taken off.

The library `zeus` (0.16, read) is not used: it hands on the negative growth of a counter that was
reset and the zero of one that stands still, sees a wrap of RAPL's up to a second late, in a process
of its own, and cannot leave out the slices in which other calls run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch

from sdbench.instruments.gpu import gpu_energy_j
from sdbench.instruments.steps import GiveWay
from sdbench.variants.trace import Listener, Step

UPDATES = 10
"""Updates of a counter that a call, or a slice of one in lockstep, must last. The reading at either
end is up to one update late, so a call of ten is off by 4 % (standard deviation)."""
STEP_UPDATES = 100
"""The same for a step, which is told by itself."""
STILL = 0.5
"""Share of the idle energy below which a counter stood still: no call takes less than none."""
SETTLE_S, IDLE_S, POLL_S = 1.0, 2.0, 0.01
"""How long the machine rests before its idle power is measured, for how long, how often read."""


class Refused(Exception):
    """Of readings that no energy follows from: why."""


class Reading(NamedTuple):
    """A counter at one moment.

    Attributes:
        at_s: a monotonic clock.
        joules: of every part that counts by itself.
    """

    at_s: float
    joules: tuple[float, ...]


class Counter(Protocol):
    """What keeps count of energy.

    Attributes:
        source: its name in the tables.
        ranges_j: for each part the value at which it begins again from 0; None where it does not.
        most_w: more than a part can take.
        update_s: time between two updates; None where it is not known beforehand.
        in_slices: whether it may be read while a call runs.
    """

    source: str
    ranges_j: tuple[float | None, ...]
    most_w: float
    update_s: float | None
    in_slices: bool

    def read(self) -> Reading:
        """The counter now, when the device has done its work.

        Raises:
            Refused: it cannot be read.
        """
        ...


class GpuCounter:
    """The counter of an NVIDIA GPU, in millijoules since its driver was loaded.

    It is of the whole board, whoever uses it. It is updated every 20 to 100 ms, by model. A reading
    waits for the device, so within a call there is none.

    Source: `nvmlDeviceGetTotalEnergyConsumption`, of Volta and younger; on how often boards update
        their readings of power Yang et al. 2024, arXiv 2312.02741.
    """

    source = "nvml"
    ranges_j: tuple[float | None, ...] = (None,)
    most_w = 5_000.0
    update_s: float | None = None
    in_slices = False

    def __init__(self, device: torch.device) -> None:
        """Take a CUDA device."""
        self._device = device

    def read(self) -> Reading:
        """The counter, when the device has done its work."""
        torch.cuda.synchronize(self._device)
        joules = gpu_energy_j(self._device)
        if joules is None:
            raise Refused("the counter cannot be read")
        return Reading(time.perf_counter(), (joules,))


class PackageCounter:
    """RAPL's counters of the processor packages, by the kernel's powercap.

    They are of all that the packages run, without the memory's own. They are updated every
    millisecond, and begin again after some minutes of full load.

    Source: Documentation/power/powercap/powercap.rst of Linux; on its updates Khan et al. 2018,
        "RAPL in Action", https://doi.org/10.1145/3177754.
    """

    source = "rapl"
    most_w = 1_000.0
    update_s: float | None = 1e-3
    in_slices = True

    def __init__(self, zones: tuple[Path, ...]) -> None:
        """Take the folders of the packages.

        Raises:
            OSError, ValueError: one of them does not tell its range.
        """
        self._files = tuple(zone / "energy_uj" for zone in zones)
        ranges = ((zone / "max_energy_range_uj").read_text() for zone in zones)
        self.ranges_j: tuple[float | None, ...] = tuple(int(text) / 1e6 for text in ranges)

    def read(self) -> Reading:
        """The counters, one after the other."""
        try:
            joules = tuple(int(file.read_text()) / 1e6 for file in self._files)
        except (OSError, ValueError):
            raise Refused("the counter cannot be read") from None
        return Reading(time.perf_counter(), joules)


def counter_for(device: torch.device, root: Path = Path("/")) -> Counter | None:
    """The counter of what runs a pipeline's calls; None where there is none that can be read.

    Args:
        device: of the pipeline: a GPU's own counter, or that of all packages of the processor.
        root: where the system's own files are.
    """
    try:
        counter = GpuCounter(device) if device.type == "cuda" else _packages(device, root)
        if counter is not None:
            counter.read()
        return counter
    except (OSError, ValueError, Refused):
        return None


def _packages(device: torch.device, root: Path) -> PackageCounter | None:
    """RAPL's packages, where the CPU runs the calls.

    Zones within a package (`core`, `dram`) and the whole platform (`psys`) would count twice.
    """
    zones = sorted(root.glob("sys/class/powercap/intel-rapl:*"))
    named = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
    return PackageCounter(tuple(named)) if named and device.type == "cpu" else None


def grown(before: Reading, after: Reading, counter: Counter) -> float:
    """Energy between two readings of a counter, in joules.

    Raises:
        Refused: it was reset, or may have begun again twice.
    """
    seconds = after.at_s - before.at_s
    late_s = 2 * (counter.update_s or 0.1)  # an update late at one end, and one early at the other
    total = 0.0
    for earlier, later, range_j in zip(before.joules, after.joules, counter.ranges_j, strict=True):
        if range_j is not None and counter.most_w * seconds >= range_j:
            raise Refused("the counter may have begun again twice")
        joules = later - earlier
        if joules < 0 and range_j is not None:
            joules += range_j
        if not 0 <= joules <= counter.most_w * (seconds + late_s):
            raise Refused("the counter was reset")
        total += joules
    return total


@dataclass(frozen=True)
class Gauge:
    """A counter that moves.

    Attributes:
        counter: which it is.
        idle_w: power while nothing ran.
        update_s: time between two updates of the counter.
    """

    counter: Counter
    idle_w: float
    update_s: float


def gauge_for(device: torch.device) -> Gauge | None:
    """A device's counter with its idle power, which takes three seconds to measure.

    Nothing of this process should run meanwhile; what others run counts as idle.

    Returns:
        None, at once, where no counter can be read; None, too, where it stands still.
    """
    counter = counter_for(device)
    if counter is None:
        return None
    time.sleep(SETTLE_S)
    return at_rest(counter)


def at_rest(counter: Counter, sleep: Callable[[float], None] = time.sleep) -> Gauge | None:
    """A counter with the power that it shows now; None where it does not count.

    Args:
        counter: is read for two seconds.
        sleep: waits between two readings.
    """
    try:
        readings = [counter.read()]
        while readings[-1].at_s - readings[0].at_s < IDLE_S:
            sleep(POLL_S)
            readings.append(counter.read())

        # From an update to another one the time is known, too.
        updates = [later for one, later in pairwise(readings) if later.joules != one.joules]
        if len(updates) < 2:
            return None
        joules = sum(grown(one, later, counter) for one, later in pairwise(updates))
    except Refused:
        return None
    seconds = updates[-1].at_s - updates[0].at_s
    update_s = counter.update_s or seconds / (len(updates) - 1)
    return Gauge(counter, joules / seconds, update_s)


class EnergyMeter(Listener):
    """Energy of one call, by a counter that others do not use in the call's own time.

    After exit `columns` are those of the table `runs`, `steps` has the energy of each step in
    joules, None where a step is too short for the counter (empty where it may not be read within a
    call), and `fault` says what the counter did wrong, if anything.

    A step goes from the end of the one before to its own: probes that run between two steps are in
    it, as they are in the energy of the call.
    """

    def __init__(self, gauge: Gauge) -> None:
        """Take a counter; nothing is read yet."""
        self._gauge = gauge
        self._joules = 0.0
        self._seconds = 0.0
        self._slices = 1
        self.steps: list[float | None] = []
        self.columns: dict[str, Any] = {}
        self.fault = ""

    def __enter__(self) -> Self:
        """Begin."""
        self._go_on()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Sum up, unless the call failed."""
        if kind is not None:
            return
        self._lap()
        least_j = STILL * self._gauge.idle_w * self._seconds
        is_long = self._seconds >= UPDATES * self._gauge.update_s * self._slices
        if is_long and not self.fault and self._joules < least_j:
            stood = "stood still" if self._joules == 0 else "grew by less than half the idle power"
            self.fault = f"the counter {stood}"
        self.columns = {
            "energy_j": self._joules if is_long and not self.fault else None,
            "idle_w": self._gauge.idle_w,
            "energy_source": self._gauge.counter.source,
        }
        if self.fault:
            self.steps = [None] * len(self.steps)

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """Keep what came before the loop out of the first step."""
        if self._gauge.counter.in_slices:
            self._lap()

    def step_ends(self, step: Step) -> None:
        """Note the energy of a step."""
        if self._gauge.counter.in_slices:
            self.steps.append(self._lap())

    def leaving_out(self, give_way: GiveWay) -> GiveWay:
        """Lets others go on as a call does, and leaves their energy out."""

        def giving_way(progress: float) -> None:
            with self._paused():
                give_way(progress)

        return giving_way

    @contextmanager
    def _paused(self) -> Iterator[None]:
        self._lap()
        yield
        self._slices += 1
        self._go_on()

    def _go_on(self) -> None:
        try:
            self._last = self._gauge.counter.read()
        except Refused as error:
            self.fault = self.fault or str(error)

    def _lap(self) -> float | None:
        """Energy since the last reading; None where it cannot be told by itself."""
        if self.fault:
            return None
        try:
            now = self._gauge.counter.read()
            joules = grown(self._last, now, self._gauge.counter)
        except Refused as error:
            self.fault = str(error)
            return None

        seconds = now.at_s - self._last.at_s
        self._last = now
        self._joules += joules
        self._seconds += seconds
        return joules if seconds >= STEP_UPDATES * self._gauge.update_s else None
