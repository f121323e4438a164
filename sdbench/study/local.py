"""The local engine: a pipeline that is ready for a study's calls, and one call under its probes."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sdbench.instruments.clock import clock_for
from sdbench.instruments.cost import FlopProbe
from sdbench.instruments.disturbance import Disturbance
from sdbench.instruments.finite import NotFinite, not_numbers
from sdbench.instruments.memory import AllocatorTrace, CudaTrace, check_order
from sdbench.instruments.rss import PeakRss
from sdbench.instruments.steps import CallRecord, MemoryProbe, StepProbe
from sdbench.models.identity import identity
from sdbench.models.layout import layout
from sdbench.models.pipeline import Pipeline, denoiser_of
from sdbench.models.safety import safety_checker
from sdbench.records.environment import environment
from sdbench.study.call import Made, Ready, ready
from sdbench.study.check import Workload, loaded, loop_length, prepare
from sdbench.study.execution import CompileClock, executed, nothing_compiled
from sdbench.study.images import digest, stored_pixels
from sdbench.study.study import Study
from sdbench.study.tuning import tunable, with_tuned_scales
from sdbench.study.units import Unit
from sdbench.variants.trace import Listener, Unsupported


@dataclass(frozen=True)
class Outcome:
    """What a call gave.

    Attributes:
        environment: it ran in.
        run: columns of its run, without those that the unit decides.
        steps: the same of its steps.
        images: pixels (n, height, width, 3), where the unit keeps its images.
        flagged: for each of them whether it is a safety checker's placeholder; empty without one.
    """

    environment: dict[str, Any]
    run: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    images: NDArray[np.uint8] | None = None
    flagged: tuple[bool, ...] = ()


class Worker:
    """The local engine: a pipeline that is ready for a study's calls.

    It is a context manager, which puts the pipeline back.
    """

    def __init__(
        self,
        study: Study,
        pipe: Pipeline | None = None,
        *,
        exclusive: bool = True,
        tune: bool = False,
    ) -> None:
        """Open the model, and check that it can run the study.

        Args:
            study: whose calls will run.
            pipe: used instead of the study's model.
            exclusive: whether this worker has its device to itself, for the record.
            tune: find the scales that the study still lacks as controls; `study` then has them.

        Raises:
            ValueError: anything that cannot run.
        """
        self._pipe = loaded(study) if pipe is None else pipe
        self._work = prepare(self._pipe, study)
        with safety_checker(self._pipe, on=study.safety_checker):
            self.pipeline = identity(self._pipe, full=study.full_hash)
        self.study = study
        if tune and tunable(study):
            self.study = with_tuned_scales(study, self._pipe)

        self._executed = executed(self._pipe, study.execution)
        self._timed = study.repeats > 1 or study.execution != "eager"
        self._warm: set[tuple[str, int]] = set()
        self.environment = environment() | layout(self._pipe)
        if self._work.uncounted:
            self.environment["uncounted"] = self._work.uncounted
        self.columns = {
            "dtype": str(denoiser_of(self._pipe).dtype).removeprefix("torch."),
            "scheduler": type(self._pipe.scheduler).__name__,
            "exclusive": exclusive,
        }
        if study.lists_steps:  # a list of sigmas may hold the end, which is no step
            self.columns["num_steps"] = loop_length(self._pipe, study)

    def __enter__(self) -> Self:
        """Execute the denoiser as the study says."""
        self._executed.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Put the pipeline back."""
        self._executed.__exit__(*error)

    def outcomes(
        self, calls: Sequence[Unit], begun: Callable[[Unit], None]
    ) -> Iterator[tuple[Unit, Outcome]]:
        """Run one call after another."""
        for unit in calls:
            begun(unit)
            yield unit, self.outcome(unit)

    def outcome(self, unit: Unit) -> Outcome:
        """Run one call; that it fails is an outcome, too."""
        steps: list[dict[str, Any]] = []
        images = None
        flagged: tuple[bool, ...] = ()
        try:
            if unit.variant.name in self._work.unsupported:
                raise Unsupported(self._work.unsupported[unit.variant.name])
            self._warm_up(unit)
            measured, steps, made = observe(self._pipe, unit, self._work)
            ended = measured | {"status": "ok", "sha256": digest(made.images, unit.study.output)}
            ended["message"] = _remark(made, steps)
            if unit.keeps_images and unit.study.output == "image":
                images, flagged = stored_pixels(made.images), made.flagged
        except Unsupported as error:
            ended = {"status": "unsupported", "message": str(error)}
        except NotFinite as error:
            ended = {"status": "failed", "message": str(error)}
        except OSError:
            raise  # no space or no permission: the machine's trouble, not the unit's
        except Exception as error:  # noqa: BLE001 - what a pipeline raises is the outcome
            at = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"
            ended = {"status": "failed", "message": message}
        return Outcome(self.environment, self.columns | ended, steps, images, flagged)

    def _warm_up(self, unit: Unit) -> None:
        """Run a call once before it counts, where this process saw no warm-up of its kind.

        So it is in a resumed study, and with several workers.
        """
        kind = (unit.variant.name, len(unit.pairs))
        if unit.phase != "warmup" and self._timed and kind not in self._warm:
            _first_call(self._pipe, unit)
        self._warm.add(kind)


def observe(
    pipe: Pipeline, unit: Unit, work: Workload
) -> tuple[dict[str, Any], list[dict[str, Any]], Made]:
    """Run one pipeline call under its variant and its probes.

    CUDA's counters are free to read, so every call has its memory peaks. On the CPU the allocator
    is traced by torch's profiler, which is slow: there the warm-up, which nobody times, is the pass
    that measures memory.

    Returns:
        The measured columns of the unit's run, those of its steps, and what the call made.

    Raises:
        NotFinite: the latents or the images are not finite.
    """
    study = unit.study
    is_warmup = unit.phase == "warmup"
    is_compiled = study.execution != "eager"
    probes = _Probes.of(pipe, unit)
    compile_s = _first_call(pipe, unit) if is_compiled and is_warmup else 0.0

    with (
        _ready(pipe, unit, probes.listeners) as run,
        PeakRss() as rss,
        Disturbance(pipe.device) as disturbance,
        nothing_compiled() if is_compiled else nullcontext(),
        probes.flop or nullcontext(),
        probes.memory or nullcontext(),
        probes.steps.call() as record,
    ):
        made = run()

    # Outside of the clock: on a device this waits.
    run.require_finite(made)
    measured = _measured(record, work) | {"rss_peak_bytes": rss.peak_bytes} | disturbance.columns
    measured["accelerated"] = unit.variant.has_rows_of_its_own
    if measured["accelerated"]:
        # Its rows differ in work, which only the untimed warm-up can count.
        measured["flop"] = probes.flop.flop if probes.flop else None
    if is_compiled:
        measured["compile_s"] = compile_s
    measured |= {"height": study.height, "width": study.width}
    if study.output == "image":
        measured |= {"height": made.images.shape[2], "width": made.images.shape[3]}
    if probes.memory is not None:
        measured |= _memory(probes.memory, work, record)
    return measured, record.steps, made


@dataclass(frozen=True)
class _Probes:
    """What looks on while a call runs.

    Attributes:
        steps: times every step.
        memory: traces memory, where this call is the one to do so.
        flop: counts work, where rows differ in it.
    """

    steps: StepProbe
    memory: AllocatorTrace | CudaTrace | None
    flop: FlopProbe | None

    @classmethod
    def of(cls, pipe: Pipeline, unit: Unit) -> _Probes:
        """Those of a unit."""
        is_warmup = unit.phase == "warmup"
        memory: AllocatorTrace | CudaTrace | None = None
        if pipe.device.type == "cuda":
            memory = CudaTrace(pipe.device)
        elif is_warmup:
            memory = AllocatorTrace()
        counts_flop = unit.variant.has_rows_of_its_own and is_warmup
        steps = StepProbe(pipe.scheduler, clock_for(pipe.device))
        return cls(steps, memory, FlopProbe() if counts_flop else None)

    @property
    def listeners(self) -> list[Listener]:
        """Those that get the events of steps."""
        memory = [] if self.memory is None else [MemoryProbe(self.memory)]
        return [self.steps, *memory, *([] if self.flop is None else [self.flop])]


def _memory(
    trace: AllocatorTrace | CudaTrace, work: Workload, record: CallRecord
) -> dict[str, Any]:
    """Memory columns of a run; each step of the record gets its own peak."""
    on_cuda = isinstance(trace, CudaTrace)
    # The CPU's trace starts at zero with the weights in place; CUDA's counters are absolute.
    base = 0 if on_cuda else work.weights_bytes
    peak = base + trace.peak_bytes
    live = base + trace.live_bytes
    check_order(peak_bytes=peak, live_bytes=live, weights_bytes=work.weights_bytes)

    peaks = {interval.label: base + interval.peak_bytes for interval in trace.peaks}
    for row in record.steps:
        row["peak_bytes"] = peaks[str(row["step"])]
    reserved = trace.reserved_bytes if isinstance(trace, CudaTrace) else None
    return {"peak_bytes": peak, "reserved_bytes": reserved}


def _ready(
    pipe: Pipeline, unit: Unit, listeners: Sequence[Listener] = ()
) -> AbstractContextManager[Ready]:
    """A pipeline that is ready for a unit's call."""
    return ready(
        pipe,
        unit.call,
        output=unit.study.output,
        listeners=listeners,
        sequential=unit.study.guidance_execution == "sequential",
    )


def _first_call(pipe: Pipeline, unit: Unit) -> float:
    """Seconds that the compiler takes in a call by itself.

    That call is not measured: what compiles needs memory, too.
    """
    with CompileClock() as compiler, _ready(pipe, unit) as run:
        run()
    return compiler.seconds


def _remark(made: Made, steps: list[dict[str, Any]]) -> str | None:
    """What must be known of a call that ended well."""
    placeholders = sum(made.flagged)
    said = [not_numbers(steps)]
    if placeholders:
        said.append(f"the safety checker replaced {placeholders} of {len(made.flagged)} images")
    return "; ".join(filter(None, said)) or None


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
