"""Runs a study: checks everything that can be checked first, then runs the calls where an engine says, then scores.

The order of the calls is in `plan.py`; what a call's figures mean in `instruments`; the tables in `records`.
"""

from __future__ import annotations

import hashlib
import inspect
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sdbench.instruments.clock import clock_for
from sdbench.instruments.cost import FlopProbe, denoiser_flop, flop_per_row
from sdbench.instruments.disturbance import Disturbance
from sdbench.instruments.footprint import LiveBytes
from sdbench.instruments.memory import AllocatorTrace, CudaTrace, check_order, weights_bytes
from sdbench.instruments.quality import find_metric, provenance, score
from sdbench.instruments.rss import PeakRss
from sdbench.instruments.steps import GUIDANCE_SPACE, CallRecord, MemoryProbe, StepProbe
from sdbench.models.random_weights import has_random_weights
from sdbench.models.registry import layout, load, set_layout
from sdbench.records.environment import environment
from sdbench.records.files import first_line, inside, read_image
from sdbench.records.schema import frame
from sdbench.records.store import Mode, Results, StudyFolder, read
from sdbench.study.execution import CompileClock, executed, nothing_compiled
from sdbench.study.plan import BASELINE, Study, Unit, parse_shard, units
from sdbench.variants.adapters import applied
from sdbench.variants.guidance import denoiser_of, guidance_arguments, guided_by
from sdbench.variants.registry import Variant, parse
from sdbench.variants.rows import first_tensor
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Listener, MissingPackage, Unsupported


class Engine(Protocol):
    """Where a study's calls run."""

    environment: dict[str, Any]
    """Of the first place that was ready."""

    def outcomes(self, planned: Sequence[Unit], begun: Callable[[Unit], None]) -> Iterator[tuple[Unit, Outcome]]:
        """Run calls, in any order; `begun` is told of each when it starts. The caller writes what comes."""
        ...


def run(
    study: Study,
    out: str | Path | None = None,
    *,
    pipe: Any = None,
    mode: Mode = "new",
    engine: str = "local",
    workers: int | None = None,
    shard: str | None = None,
) -> Results:
    """Run a study and return its tables.

    Nothing is written before the model, the metrics and every variant's schedule are known to fit. Afterwards each
    finished call is kept: an interrupted study is readable, and `mode="resume"` runs what is missing.

    Args:
        study: what to run.
        out: the study's folder, or a URL of fsspec's such as `s3://bucket/prefix`; a temporary folder when not given.
        pipe: a pipeline to use in place of `study.model`, which then only names it.
        mode: "new", "resume" or "overwrite", for a folder that holds a study already.
        engine: "local" runs one call after another in this process; "ray" on workers (`ray.py`), each with a GPU or a
            share of the CPU. With one repeat calls run side by side; with more, which are for timing, each has its
            device to itself.
        workers: of the Ray engine, at most; by default one per GPU, or two per node without.
        shard: run only a part of the study, such as "2/8"; `gather` puts the parts together.

    Returns:
        The results; a call that failed is a row with `status` "failed". So are the calls of a variant that changed
        nothing (as many evaluations as the baseline, and the same images). A variant that cannot run on this pipeline
        is a row with `status` "unsupported" and the reason. Of a URL they lie in a temporary folder, too.

    Raises:
        ValueError: anything that cannot run, before the first image; a folder that does not fit the mode, or holds
            calls that this version of sdbench does not make.
    """
    return read(record(study, out, pipe=pipe, mode=mode, engine=engine, workers=workers, shard=shard))


def record(
    study: Study,
    out: str | Path | None = None,
    *,
    pipe: Any = None,
    mode: Mode = "new",
    engine: str = "local",
    workers: int | None = None,
    shard: str | None = None,
) -> Path:
    """Run a study as `run` does, and return its folder: its tables may be large, and need not be read whole."""
    if has_random_weights(pipe):
        study = replace(study, random_weights=True)
    part = None if shard is None else parse_shard(shard)
    planned = units(study, part)
    quality = provenance(study.metrics or ())
    settings = study.as_json() | {"quality": quality, "guidance_space": GUIDANCE_SPACE}
    if part is not None:
        settings["shard"] = str(part)
    out = tempfile.mkdtemp(prefix="sdbench-") if out is None else out
    with (
        _opened(engine, study, pipe, workers) as opened,  # first, since it may refuse
        StudyFolder.create(out, settings, environment=opened.environment, mode=mode) as folder,
    ):
        _require_planned(folder, planned, out)
        try:
            _run_missing(folder, opened, planned)
        finally:
            folder.compact()
        runs = folder.read("runs")["runs"]
        if part is None:  # what a variant did is known when all of the study ran
            runs = inactive_failed(runs)
            folder.rewrite("runs", runs)
        if study.output == "image":
            images = folder.read("runs", "images")["images"]
            folder.rewrite("images", scored(images, runs, study, folder.path))
        return folder.path


def _opened(engine: str, study: Study, pipe: Any, workers: int | None) -> AbstractContextManager[Engine]:
    if engine == "ray":
        if pipe is not None:
            raise ValueError("a pipeline object cannot be sent to Ray's workers: name the model in the study")
        from sdbench.study.ray import cluster

        return cluster(study, workers)
    if engine != "local":
        raise ValueError(f"unknown engine '{engine}'; there are: local, ray")
    if workers is not None:
        raise ValueError("the local engine has no workers; engine 'ray' has")
    return Worker(study, pipe)


def _require_planned(folder: StudyFolder, planned: list[Unit], out: str | Path) -> None:
    """Refuse a folder with calls that are not of this plan: tables of both would count pairs and repeats twice."""
    strange = folder.recorded() - {unit.id for unit in planned}
    if strange:
        raise ValueError(
            f"{out} holds {len(strange)} calls that this study does not make now: another version of sdbench than "
            f"{version('sdbench')} made them, or a file that a variant names has changed; --overwrite runs all anew"
        )


def _run_missing(folder: StudyFolder, engine: Engine, planned: list[Unit]) -> None:
    """Run what is not finished, and record each call as it comes."""
    finished = folder.finished()
    missing = [unit for unit in planned if unit.id not in finished]
    with progress_bar() as progress:
        task = progress.add_task("running", total=len(planned), completed=len(planned) - len(missing), what="")
        for unit, outcome in engine.outcomes(missing, lambda unit: progress.update(task, what=unit.variant.name)):
            _record(folder, unit, outcome)
            progress.advance(task)


def _record(folder: StudyFolder, unit: Unit, outcome: Outcome) -> None:
    identity = {"unit": unit.id, "variant": unit.variant.name, "repeat": unit.repeat, "phase": unit.phase}
    settings = {
        "study": unit.study.name,
        "model": unit.study.model,
        "num_steps": unit.num_steps,
        "guidance_scale": unit.guidance_scale,
        "batch": len(unit.pairs),
        "environment": folder.add_environment(outcome.environment),
    }
    tables = {
        "runs": [identity | settings | outcome.run],
        "steps": [identity | row for row in outcome.steps],
        "images": [] if outcome.images is None else _save(folder.path, unit, outcome.images),
    }
    folder.add(unit.id, **{table: frame(table, rows) for table, rows in tables.items()})


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

    def __init__(self, study: Study, pipe: Any = None, *, exclusive: bool = True) -> None:
        """Open the model, and check that it can run the study.

        Args:
            study: whose calls will run.
            pipe: used in place of the study's model.
            exclusive: whether this worker has its device to itself, for the record.

        Raises:
            ValueError: anything that cannot run.
        """
        self._pipe = loaded(study) if pipe is None else pipe
        self._work = prepare(self._pipe, study)
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

    def outcomes(self, planned: Sequence[Unit], begun: Callable[[Unit], None]) -> Iterator[tuple[Unit, Outcome]]:
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
            ended = measured | {"status": "ok", "sha256": _digest(output, unit.study.output)}
            if unit.keeps_images and unit.study.output == "image":
                images = _pixels(output)
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


def loaded(study: Study) -> Any:
    """The pipeline of a study, opened as its fields say."""
    pipe = load(study.model, dtype=study.dtype, device=study.device, random_weights=study.random_weights)
    set_layout(pipe, memory_format=study.memory_format, threads=study.threads)
    return pipe


@dataclass(frozen=True)
class Workload:
    """What is known of a study's calls before the first one.

    Attributes:
        flop_per_row: work of a denoiser row.
        row_peak_bytes: memory of a denoiser row.
        weights_bytes: of the pipeline.
        unsupported: why a variant cannot run here, by its name.
    """

    flop_per_row: float
    row_peak_bytes: float
    weights_bytes: int
    unsupported: dict[str, str] = field(default_factory=dict)


def call_arguments(study: Study, unit: Unit, pipe: Any) -> dict[str, Any]:
    """The arguments of one pipeline call; each image has its own generator, so it does not depend on its batch."""
    sizes = {"height": study.height, "width": study.width}
    rows, negative = len(unit.pairs), study.negative_prompt
    return {
        **study.arguments,
        **unit.variant.arguments,
        **{name: value for name, value in sizes.items() if value is not None},
        **guidance_arguments(pipe, unit.guidance_scale, rows=rows, negative_prompt=negative),
        "prompt": [prompt for _, prompt, _ in unit.pairs],
        "generator": [torch.Generator("cpu").manual_seed(seed) for _, _, seed in unit.pairs],
        "num_inference_steps": unit.num_steps,
    }


class _Stopped(Exception):
    """Ends a pipeline call before its first evaluation."""


def prepare(pipe: Any, study: Study) -> Workload:
    """Check without generating an image that a pipeline can run a study, and count the work of a denoiser row.

    Raises:
        ValueError: a pipeline without guidance, a schedule that does not fit the loop, or arguments that the pipeline
            does not take.
    """
    try:
        return _tried(pipe, study)
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{type(pipe).__name__} cannot run this study: {reason}") from error


def _tried(pipe: Any, study: Study) -> Workload:
    unknown = set(study.arguments) - set(inspect.signature(type(pipe).__call__).parameters)
    if unknown:  # some pipelines pass over what they do not know
        raise ValueError(f"{type(pipe).__name__} takes no argument '{min(unknown)}'")
    first = units(study)[0]
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _Stopped

    unsupported = {}
    for variant in map(parse, study.variants):
        unit = Unit(study, variant, first.pairs, 0, "warmup")
        changes = variant.student is not None or variant.accelerator is not None
        if study.execution != "eager" and (changes or _shrinks(unit)):
            raise ValueError(f"variant '{variant.name}' changes what is compiled in: execution must be eager")
        try:
            _require_arguments(pipe, variant)
            if variant.accelerator is not None:
                _try_accelerator(pipe, unit)
            _start(pipe, unit, _StopAtLoop())
        except Unsupported as error:
            unsupported[variant.name] = str(error)
        except ValueError as error:
            raise ValueError(f"variant '{variant.name}': {error}") from None
    with guided_by(pipe, GuidanceSchedule.none):
        pipe(**call_arguments(study, first, pipe) | {"num_inference_steps": 1}, output_type="latent")

    hook = denoiser_of(pipe).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        _start(pipe, first, None)
    finally:
        hook.remove()
    args, kwargs = seen[0]
    rows = len(first_tensor(seen[0]))
    if study.guidance_execution == "batched" and rows < 2 * len(first.pairs):
        raise ValueError(f"{type(pipe).__name__} guides by two calls, which cannot be batched")
    outside = tree_leaves([list(denoiser_of(pipe).parameters()), list(denoiser_of(pipe).buffers()), seen[0]])
    with LiveBytes(outside) as live:
        flop = denoiser_flop(denoiser_of(pipe), *args, **kwargs)
    peak = live.cpu_peak_bytes if pipe.device.type == "cpu" else live.peak_bytes
    return Workload(flop_per_row(flop, rows), peak / rows, weights_bytes(pipe), unsupported)


def _shrinks(unit: Unit) -> bool:
    policy = unit.variant.policy
    return policy is not None and policy(unit.guidance_scale).shrinks


def _try_accelerator(pipe: Any, unit: Unit) -> None:
    """Two steps, in which a method that does not know the pipeline shows itself.

    Raises:
        Unsupported: what it raised; a missing package and a lack of memory or disk are no property of the method.
    """
    two_steps = {"num_inference_steps": 2, "output_type": "latent"}
    steps = replace(unit.variant, rule=GuidanceSchedule.full, policy=None, student=None)
    try:
        with applied(pipe, steps, guidance_scale=unit.guidance_scale):
            pipe(**call_arguments(unit.study, unit, pipe) | two_steps)
    except (MissingPackage, Unsupported, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise Unsupported(f"fails on {type(pipe).__name__}: {type(error).__name__}: {error}") from error


def _require_arguments(pipe: Any, variant: Variant) -> None:
    unknown = set(variant.arguments) - set(inspect.signature(type(pipe).__call__).parameters)
    if unknown:
        raise Unsupported(f"{type(pipe).__name__} takes no {min(unknown)}")


def loop_length(pipe: Any, study: Study) -> int:
    """Iterations that a pipeline's loop really runs for a study's number of steps."""
    stopped = _StopAtLoop()
    _start(pipe, units(replace(study, batch=1))[0], stopped)
    return stopped.iterations


class _StopAtLoop(Listener):
    """Ends a call before its first evaluation, and keeps how many iterations were to come."""

    iterations = 0

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        self.iterations = iterations
        raise _Stopped


def _start(pipe: Any, unit: Unit, listener: Listener | None) -> None:
    try:
        listeners = [listener] if listener else []
        with applied(pipe, unit.variant, guidance_scale=unit.guidance_scale, listeners=listeners):
            pipe(**call_arguments(unit.study, unit, pipe), output_type="latent")
    except _Stopped:
        return


def _digest(output: Tensor, kind: str) -> str:
    """Of a call's images as they are stored, or of its latents."""
    values = eight_bit(output) if kind == "image" else output.float().cpu()
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()


def inactive_failed(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, those of variants failed that did in no call of the first repeat anything else than the baseline."""
    first = runs[(runs["phase"] == "measured") & (runs["repeat"] == 0) & (runs["status"] == "ok")]
    calls = first.dropna(subset="sha256").groupby("variant")
    did = {name: Counter(zip(rows["rows"], rows["sha256"], strict=True)) for name, rows in calls}
    inactive = {name for name, counted in did.items() if name != BASELINE and counted == did.get(BASELINE)}
    failed = runs["variant"].isin(inactive)
    changed = runs.copy()
    changed.loc[failed, "status"] = "failed"
    changed.loc[failed, "message"] = "inactive: as many evaluations as cfg, and the same outcome"
    return changed


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
    counted = FlopProbe() if unit.variant.accelerator is not None and unit.phase == "warmup" else None
    listeners += [counted] if counted else []
    sequential = study.guidance_execution == "sequential"
    compiled = study.execution != "eager"
    compile_s = _first_call(pipe, unit) if compiled and unit.phase == "warmup" else 0.0
    with (
        applied(pipe, unit.variant, guidance_scale=unit.guidance_scale, listeners=listeners, sequential=sequential),
        PeakRss() as rss,
        Disturbance() as disturbance,
        nothing_compiled() if compiled else nullcontext(),
        counted or nullcontext(),
        trace or nullcontext(),
        probe.call() as record,
    ):
        images = pipe(**arguments).images
    measured = _measured(record, work) | {"rss_peak_bytes": rss.peak_bytes} | disturbance.columns
    if unit.variant.accelerator is not None:  # its rows differ in work, which only the untimed warm-up can count
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


def eight_bit(images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 height width"]:
    """Images as a PNG file gives them back: of 256 values in [0, 1], in float32 on the CPU."""
    return (images.float().clamp(0, 1) * 255).round().cpu() / 255


def _pixels(images: Float[Tensor, "n 3 height width"]) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = (eight_bit(images) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels


def _save(folder: Path, unit: Unit, pixels: NDArray[np.uint8]) -> list[dict[str, Any]]:
    (folder / "images").mkdir(exist_ok=True)
    rows = []
    for (prompt_id, prompt, seed), image in zip(unit.pairs, pixels, strict=True):
        path = Path("images") / f"{unit.id}-{prompt_id}-{seed}.png"
        Image.fromarray(image).save(folder / path)
        rows.append(
            {
                "unit": unit.id,
                "variant": unit.variant.name,
                "prompt_id": prompt_id,
                "prompt": prompt,
                "seed": seed,
                "path": str(path),
                "sha256": hashlib.sha256(image.tobytes()).hexdigest(),
            }
        )
    return rows


def scored(images: pd.DataFrame, runs: pd.DataFrame, study: Study, folder: Path, *, chunk: int = 64) -> pd.DataFrame:
    """The images table with every metric of the study; at most `2 * chunk` images are open at a time.

    Each image is compared with the one that the baseline's first repeat made of the same prompt and seed; the
    baseline's second repeat, compared like any other, is the noise floor.
    """
    images = images.merge(runs[["unit", "repeat"]], on="unit")
    is_reference = (images["variant"] == BASELINE) & (images["repeat"] == 0)
    reference = images[is_reference].set_index(["prompt_id", "seed"])["path"]
    images = images.drop(columns="repeat")
    against = images[["prompt_id", "seed"]].join(reference, on=["prompt_id", "seed"])["path"]
    comparable = ~is_reference & against.notna()
    images.loc[comparable, "reference_variant"] = BASELINE
    for name in study.metrics or ():
        metric, _ = find_metric(name)
        rows = images.index if metric.needs == "prompt" else images.index[comparable]
        values = np.full(len(images), np.nan)
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            values[part] = _scores(name, images.loc[part], against[part], folder)
        images[metric.name] = values
    return images


def _scores(name: str, images: pd.DataFrame, against: pd.Series[str], folder: Path) -> Float[Tensor, " n"]:
    """A metric of some images; their pixels are gone when it returns."""
    pixels = read_images(folder, images["path"])
    if find_metric(name)[0].needs == "prompt":
        return score(name, pixels, list(images["prompt"]))
    return score(name, pixels, read_images(folder, against))


def read_images(folder: Path, paths: Iterable[str]) -> Float[Tensor, "n 3 height width"]:
    """Images of one size, by their paths in a folder, in [0, 1].

    Raises:
        ValueError: a path that leads out of the folder, an image that cannot be read, or one of another size.
    """
    arrays = [np.asarray(read_image(inside(folder, path))) for path in paths]
    if len({array.shape for array in arrays}) != 1:
        raise ValueError(f"{folder}: the images are not of one size, or there are none")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class Estimate:
    """What a study will take: calls, seconds of computing, and the peak memory seen while trying."""

    calls: int
    seconds: float
    rss_peak_bytes: int


def estimate(study: Study, *, pipe: Any = None, steps: int = 4) -> Estimate:
    """How long a study takes and how much memory, from one short call of the baseline.

    Evaluations are taken to cost in proportion to their rows, so the estimate for unguided steps is a lower bound.
    """
    pipe = loaded(study) if pipe is None else pipe
    work = prepare(pipe, study)
    planned = units(study)
    baseline = parse(BASELINE)
    short = Unit(study, Variant(BASELINE, baseline.rule, num_steps=steps), planned[0].pairs, 0, "measured")
    observe(pipe, short, work)
    measured, *_ = observe(pipe, short, work)
    row_s = measured["denoise_s"] / measured["rows"]
    other_s = (measured["text_s"] + measured["decode_s"]) / len(short.pairs)
    lengths = {unit.variant.name: unit.variant.rule(unit.num_steps).nfe for unit in planned}
    seconds = sum(len(unit.pairs) * (lengths[unit.variant.name] * row_s + other_s) for unit in planned)
    return Estimate(len(planned), seconds, measured["rss_peak_bytes"])


def progress_bar() -> Progress:
    """A bar with the time taken and left, and a field `what` for what is running."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    what = TextColumn("{task.fields[what]}", markup=False)  # a variant may name a file in brackets
    return Progress(*columns, TimeRemainingColumn(elapsed_when_finished=False), what)
