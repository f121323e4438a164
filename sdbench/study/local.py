"""The local engine: a pipeline that is ready for a study's calls, and one call under its probes."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sdbench.instruments.clock import clock_for
from sdbench.instruments.cost import FlopProbe
from sdbench.instruments.disturbance import Disturbance
from sdbench.instruments.memory import AllocatorTrace, CudaTrace, check_order
from sdbench.instruments.rss import PeakRss
from sdbench.instruments.steps import CallRecord, MemoryProbe, StepProbe
from sdbench.models.registry import layout
from sdbench.records.environment import environment
from sdbench.study.call import call_arguments
from sdbench.study.check import Workload, loaded, prepare
from sdbench.study.execution import CompileClock, executed, nothing_compiled
from sdbench.study.images import digest, stored_pixels
from sdbench.study.study import Study
from sdbench.study.tuning import tunable, with_tuned_scales
from sdbench.study.units import Unit
from sdbench.variants.adapters import applied
from sdbench.variants.guidance import denoiser_of
from sdbench.variants.trace import Listener, Unsupported


@dataclass(frozen=True)
class Outcome:
    """What a call gave.

    Attributes:
        environment: it ran in.
        run: columns of its run, without those that the unit decides.
        steps: the same of its steps.
        images: pixels (n, height, width, 3), where the unit keeps its images.
    """

    environment: dict[str, Any]
    run: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    images: NDArray[np.uint8] | None = None


class Worker:
    """A pipeline that is ready for a study's calls: the local engine; a context manager that puts the pipeline back."""

    def __init__(
        self, study: Study, pipe: Any = None, *, exclusive: bool = True, tune: bool = False
    ) -> None:
        """Open the model, and check that it can run the study.

        Args:
            study: whose calls will run.
            pipe: used in place of the study's model.
            exclusive: whether this worker has its device to itself, for the record.
            tune: find the scales that the study still lacks as controls; `study` then has them.

        Raises:
            ValueError: anything that cannot run.
        """
        self._pipe = loaded(study) if pipe is None else pipe
        self._work = prepare(self._pipe, study)
        self.study = with_tuned_scales(study, self._pipe) if tune and tunable(study) else study
        self._executed = executed(self._pipe, study.execution)
        self._timed = study.repeats > 1 or study.execution != "eager"
        self._warm: set[tuple[str, int]] = set()
        self.environment = environment() | layout(self._pipe)
        self.columns = {
            "dtype": str(denoiser_of(self._pipe).dtype).removeprefix("torch."),
            "scheduler": type(self._pipe.scheduler).__name__,
            "exclusive": exclusive,
        }

    def __enter__(self) -> Self:
        """Execute the denoiser as the study says."""
        self._executed.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Put the pipeline back."""
        self._executed.__exit__(*error)

    def outcomes(
        self, planned: Sequence[Unit], begun: Callable[[Unit], None]
    ) -> Iterator[tuple[Unit, Outcome]]:
        """Run one call after another."""
        for unit in planned:
            begun(unit)
            yield unit, self.outcome(unit)

    def outcome(self, unit: Unit) -> Outcome:
        """Run one call; that it fails is an outcome, too."""
        steps: list[dict[str, Any]] = []
        images = None
        try:
            if unit.variant.name in self._work.unsupported:
                raise Unsupported(self._work.unsupported[unit.variant.name])
            self._warm_up(unit)
            measured, steps, output = observe(self._pipe, unit, self._work)
            ended = measured | {"status": "ok", "sha256": digest(output, unit.study.output)}
            if unit.keeps_images and unit.study.output == "image":
                images = stored_pixels(output)
        except Unsupported as error:
            ended = {"status": "unsupported", "message": str(error)}
        except OSError:
            raise  # no space or no permission: the machine's trouble, not the unit's
        except Exception as error:  # noqa: BLE001 - whatever a pipeline raises is the unit's outcome
            at = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"
            ended = {"status": "failed", "message": message}
        return Outcome(self.environment, self.columns | ended, steps, images)

    def _warm_up(self, unit: Unit) -> None:
        """Run a call that is timed, or was compiled, once before, where this process did not see the study's warm-ups.

        So it is in a resumed study, and with several workers.
        """
        kind = (unit.variant.name, len(unit.pairs))
        if unit.phase == "measured" and self._timed and kind not in self._warm:
            _first_call(self._pipe, unit)
        self._warm.add(kind)


def observe(
    pipe: Any, unit: Unit, work: Workload
) -> tuple[dict[str, Any], list[dict[str, Any]], Float[Tensor, "n ..."]]:
    """Run one pipeline call under its variant and its probes.

    CUDA's counters are free to read, so every call has its memory peaks. On the CPU the allocator is traced by torch's
    profiler, which is slow: there the warm-up, which nobody times, is the pass that measures memory.

    Returns:
        The measured columns of the unit's run, those of its steps, and the images in [0, 1], or the latents where the
        study stops there.
    """
    study = unit.study
    cuda = pipe.device.type == "cuda"
    trace = CudaTrace(pipe.device) if cuda else AllocatorTrace() if unit.phase == "warmup" else None
    probe = StepProbe(pipe.scheduler, clock_for(pipe.device))
    arguments = call_arguments(study, unit, pipe)
    arguments["output_type"] = "pt" if study.output == "image" else "latent"
    listeners: list[Listener] = [probe, *([MemoryProbe(trace)] if trace else [])]
    counted = (
        FlopProbe() if unit.variant.accelerator is not None and unit.phase == "warmup" else None
    )
    listeners += [counted] if counted else []
    sequential = study.guidance_execution == "sequential"
    compiled = study.execution != "eager"
    compile_s = _first_call(pipe, unit) if compiled and unit.phase == "warmup" else 0.0
    with (
        applied(
            pipe,
            unit.variant,
            guidance_scale=unit.guidance_scale,
            listeners=listeners,
            sequential=sequential,
        ),
        PeakRss() as rss,
        Disturbance(pipe.device) as disturbance,
        nothing_compiled() if compiled else nullcontext(),
        counted or nullcontext(),
        trace or nullcontext(),
        probe.call() as record,
    ):
        images = pipe(**arguments).images
    measured = _measured(record, work) | {"rss_peak_bytes": rss.peak_bytes} | disturbance.columns
    if (
        unit.variant.accelerator is not None
    ):  # its rows differ in work, which only the untimed warm-up can count
        measured["flop"] = counted.flop if counted else None
    if compiled:
        measured["compile_s"] = compile_s
    if study.output == "image":
        measured |= {"height": images.shape[2], "width": images.shape[3]}
    else:
        measured |= {"height": study.height, "width": study.width}
    if trace is not None:
        # The CPU's trace starts at zero with the weights in place; CUDA's counters are absolute.
        base = 0 if cuda else work.weights_bytes
        peak, live = base + trace.peak_bytes, base + trace.live_bytes
        check_order(peak_bytes=peak, live_bytes=live, weights_bytes=work.weights_bytes)
        reserved = trace.reserved_bytes if isinstance(trace, CudaTrace) else None
        measured |= {"peak_bytes": peak, "reserved_bytes": reserved}
        peaks = {interval.label: base + interval.peak_bytes for interval in trace.peaks}
        for row in record.steps:
            row["peak_bytes"] = peaks[str(row["step"])]
    return measured, record.steps, images


def _first_call(pipe: Any, unit: Unit) -> float:
    """Seconds that the compiler takes in a call of its own, which is not measured: what compiles needs memory, too."""
    sequential = unit.study.guidance_execution == "sequential"
    running = applied(pipe, unit.variant, guidance_scale=unit.guidance_scale, sequential=sequential)
    output_type = "pt" if unit.study.output == "image" else "latent"
    with CompileClock() as compiler, running:
        pipe(**call_arguments(unit.study, unit, pipe), output_type=output_type)
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
        "flop": round(work.flop_per_row * record.rows),
    }
