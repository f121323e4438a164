"""One call of a study under its probes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdbench.instruments.clock import clock_for
from sdbench.instruments.cost import FlopProbe
from sdbench.instruments.energy import EnergyMeter, Gauge
from sdbench.instruments.memory import AllocatorTrace, CudaTrace, check_order
from sdbench.instruments.steps import CallRecord, GiveWay, MemoryProbe, StepProbe
from sdbench.instruments.surroundings import Surroundings
from sdbench.models.pipeline import Pipeline, Scheduler, denoisers_of
from sdbench.models.stored_weights import stored_bytes
from sdbench.study.call import Ready, ready
from sdbench.study.check import Workload
from sdbench.study.execution import CompileClock, nothing_compiled
from sdbench.study.made import Made
from sdbench.study.units import Unit
from sdbench.variants.other_scheduler import other_scheduler
from sdbench.variants.trace import Listener


@dataclass(frozen=True)
class Outcome:
    """What a call gave.

    Attributes:
        environment: it ran in.
        run: columns of its run, without those that the unit decides.
        steps: the same of its steps.
        images: pixels (n, height, width, 3), of videos (n, frames, height, width, 3), where the
            unit keeps them.
        flagged: for each of them whether it is a safety checker's placeholder; empty without one.
    """

    environment: dict[str, Any]
    run: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    images: NDArray[np.uint8] | None = None
    flagged: tuple[bool, ...] = ()


def observe(
    pipe: Pipeline, unit: Unit, work: Workload, *, give_way: GiveWay | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]], Made]:
    """Run one pipeline call under its variant and its probes.

    CUDA's counters are free to read, so every call has its memory peaks. On the CPU the allocator
    is traced by torch's profiler, which is slow: there the warm-up, which nobody times, is the pass
    that measures memory.

    Args:
        pipe: a guided pipeline.
        unit: what runs.
        work: of the study.
        give_way: as `StepProbe` takes it. What goes on around such a call, and on a GPU its memory,
            is not its own, so both are left to the caller.

    Returns:
        The measured columns of the unit's run, those of its steps, and what the call made.

    Raises:
        NotFinite: the latents or the images are not finite.
    """
    study = unit.study
    is_warmup = unit.phase == "warmup"
    is_compiled = study.execution != "eager"
    scheduler = other_scheduler(pipe, unit.variant.scheduler)
    probes = _Probes.of(pipe, unit, scheduler, give_way, work.gauge)
    compile_s = first_call(pipe, unit) if is_compiled and is_warmup else 0.0

    with (
        _ready(pipe, unit, probes.listeners, copies_weights=give_way is not None) as run,
        nullcontext() if give_way else Surroundings(pipe.device) as around,
        nothing_compiled() if is_compiled else nullcontext(),
        probes.flop or nullcontext(),
        probes.memory or nullcontext(),
        probes.energy or nullcontext(),
        probes.steps.call() as record,
    ):
        made = run()

    # Outside of the clock: on a device this waits.
    run.require_finite(made)
    measured = _measured(record, work) | _of_unit(unit, made) | (around.columns if around else {})
    measured["pipeline_scale"] = run.pipeline_scale
    measured["scheduler"] = type(scheduler).__name__
    if measured["accelerated"]:
        measured |= _counted(unit, probes.flop)
    if is_compiled:
        measured["compile_s"] = compile_s
    weights = work.weights_bytes
    used = run.trace.weights_bytes
    if used is not None:
        # What was in a file during the call is back by now.
        weights += used - stored_bytes(denoisers_of(pipe))
        measured |= _of_weights(used, in_lockstep=give_way is not None)
    return measured | _metered(probes, weights, record), record.steps, made


def _of_weights(used: int, *, in_lockstep: bool) -> dict[str, Any]:
    """Bytes of a denoiser in other number formats, which in lockstep stand next to the model's."""
    return {"weights_bytes": used} | ({"copied_bytes": used} if in_lockstep else {})


def _counted(unit: Unit, probe: FlopProbe | None) -> dict[str, Any]:
    """The work of a call whose rows differ in it, which only the untimed warm-up can count."""
    if probe is None:
        return {"flop": None}
    counted = {"flop": probe.flop}
    if unit.variant.accelerator is not None:
        counted["full_forwards"] = probe.full_forwards
    return counted


def _of_unit(unit: Unit, made: Made) -> dict[str, Any]:
    """What a call shows of its unit: whose rows they are, and of what size its images."""
    study = unit.study
    height, width = study.height, study.width
    if study.makes_pictures:
        height, width = made.images.shape[-2:]
    return {"accelerated": unit.variant.has_rows_of_its_own, "height": height, "width": width}


@dataclass(frozen=True)
class _Probes:
    """What looks on while a call runs.

    Attributes:
        steps: times every step.
        memory: traces memory, where this call is the one to do so.
        flop: counts work, where rows differ in it.
        energy: reads a counter, where there is one.
    """

    steps: StepProbe
    memory: AllocatorTrace | CudaTrace | None
    flop: FlopProbe | None
    energy: EnergyMeter | None

    @classmethod
    def of(
        cls,
        pipe: Pipeline,
        unit: Unit,
        scheduler: Scheduler,
        give_way: GiveWay | None,
        gauge: Gauge | None,
    ) -> _Probes:
        """Those of a unit, whose call has this scheduler."""
        is_warmup = unit.phase == "warmup"
        memory: AllocatorTrace | CudaTrace | None = None
        if pipe.device.type == "cuda" and give_way is None:
            memory = CudaTrace(pipe.device)
        elif pipe.device.type == "cpu" and is_warmup:
            memory = AllocatorTrace()
        counts_flop = unit.variant.has_rows_of_its_own and is_warmup
        energy: EnergyMeter | None = None
        if gauge is not None and (give_way is None or gauge.counter.in_slices):
            energy = EnergyMeter(gauge)
            give_way = None if give_way is None else energy.leaving_out(give_way)
        steps = StepProbe(scheduler, clock_for(pipe.device), give_way)
        return cls(steps, memory, FlopProbe() if counts_flop else None, energy)

    @property
    def listeners(self) -> list[Listener]:
        """Those that get the events of steps."""
        memory = [] if self.memory is None else [MemoryProbe(self.memory)]
        # It comes before the clock's next step: reading a counter must not count as a part of one.
        energy = [] if self.energy is None else [self.energy]
        return [*energy, self.steps, *memory, *([] if self.flop is None else [self.flop])]


def _metered(probes: _Probes, weights_bytes: int, record: CallRecord) -> dict[str, Any]:
    """Memory and energy of a run and of its steps, where they were looked at.

    Args:
        probes: of the call.
        weights_bytes: of the pipeline, as the call had them.
        record: of the call.
    """
    memory = {} if probes.memory is None else _memory(probes.memory, weights_bytes, record)
    return memory | ({} if probes.energy is None else _energy(probes.energy, record))


def _memory(
    trace: AllocatorTrace | CudaTrace, weights_bytes: int, record: CallRecord
) -> dict[str, Any]:
    """Memory columns of a run; each step of the record gets its own peak."""
    on_cuda = isinstance(trace, CudaTrace)
    # The CPU's trace starts at zero with the weights in place; CUDA's counters are absolute.
    base = 0 if on_cuda else weights_bytes
    peak = base + trace.peak_bytes
    live = base + trace.live_bytes
    check_order(peak_bytes=peak, live_bytes=live, weights_bytes=weights_bytes)

    peaks = {interval.label: base + interval.peak_bytes for interval in trace.peaks}
    for row in record.steps:
        row["peak_bytes"] = peaks[str(row["step"])]
    reserved = trace.reserved_bytes if isinstance(trace, CudaTrace) else None
    return {"peak_bytes": peak, "reserved_bytes": reserved}


def _energy(meter: EnergyMeter, record: CallRecord) -> dict[str, Any]:
    """Energy columns of a run; each step of the record gets its own, where that is known."""
    for row, joules in zip(record.steps, meter.steps, strict=False):  # a GPU tells of none
        row["energy_j"] = joules
    return meter.columns | ({"message": f"no energy: {meter.fault}"} if meter.fault else {})


def _ready(
    pipe: Pipeline,
    unit: Unit,
    listeners: Sequence[Listener] = (),
    *,
    copies_weights: bool = False,
) -> AbstractContextManager[Ready]:
    """A pipeline that is ready for a unit's call."""
    return ready(
        pipe,
        unit.call,
        output=unit.study.output,
        listeners=listeners,
        sequential=unit.study.guidance_execution == "sequential",
        copies_weights=copies_weights,
    )


def first_call(pipe: Pipeline, unit: Unit) -> float:
    """Seconds that the compiler takes in a call by itself.

    That call is not measured: what compiles needs memory, too.
    """
    with CompileClock() as compiler, _ready(pipe, unit) as run:
        run()
    return compiler.seconds


def _measured(record: CallRecord, work: Workload) -> dict[str, Any]:
    return {
        "latency_s": record.latency_s,
        "text_s": record.text_s,
        "denoise_s": record.denoise_s,
        "decode_s": record.decode_s,
        "nfe": record.rows / record.images,
        "forwards": record.forwards,
        "rows": record.rows,
        "flop": None if work.flop_per_row is None else round(work.flop_per_row * record.rows),
        "first_timestep": record.steps[0]["timestep"],
        "first_sigma": record.steps[0]["sigma"],
    }
