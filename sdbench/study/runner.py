"""Runs a study: checks everything that can be checked first, then one pipeline call after another, then the scoring.

The order of the calls is in `plan.py`; what a call's figures mean in `instruments`; the tables in `records`.
"""

from __future__ import annotations

import hashlib
import inspect
import tempfile
import traceback
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
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
from sdbench.records.environment import environment, environment_key
from sdbench.records.files import first_line, inside, read_image
from sdbench.records.schema import frame
from sdbench.records.store import Mode, Results, StudyFolder, read
from sdbench.study.execution import CompileClock, executed, nothing_compiled
from sdbench.study.plan import BASELINE, Study, Unit, units
from sdbench.variants.adapters import applied
from sdbench.variants.guidance import denoiser_of, guidance_arguments, guided_by
from sdbench.variants.registry import Variant, parse
from sdbench.variants.rows import first_tensor
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Listener, MissingPackage, Unsupported


def run(study: Study, out: str | Path | None = None, *, pipe: Any = None, mode: Mode = "new") -> Results:
    """Run a study and return its tables.

    Nothing is written before the model, the metrics and every variant's schedule are known to fit. Afterwards each
    finished call is kept: an interrupted study is readable, and `mode="resume"` runs what is missing.

    Args:
        study: what to run.
        out: the study's folder; a temporary one when not given.
        pipe: a pipeline to use in place of `study.model`, which then only names it.
        mode: "new", "resume" or "overwrite", for a folder that holds a study already.

    Returns:
        The results; a call that failed is a row with `status` "failed". So are the calls of a variant that changed
        nothing (as many evaluations as the baseline, and the same images). A variant that cannot run on this pipeline
        is a row with `status` "unsupported" and the reason.

    Raises:
        ValueError: anything that cannot run, before the first image; a folder that does not fit the mode.
    """
    return read(record(study, out, pipe=pipe, mode=mode))


def record(study: Study, out: str | Path | None = None, *, pipe: Any = None, mode: Mode = "new") -> Path:
    """Run a study as `run` does, and return its folder: its tables may be large, and need not be read whole."""
    if has_random_weights(pipe):
        study = replace(study, random_weights=True)
    quality = provenance(study.metrics or ())
    pipe = loaded(study) if pipe is None else pipe
    work = prepare(pipe, study)
    env = environment() | layout(pipe)
    settings = study.as_json() | {"quality": quality, "guidance_space": GUIDANCE_SPACE}
    out = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="sdbench-"))
    with (
        executed(pipe, study.execution),  # first, since it may refuse
        StudyFolder.create(out, settings, environment=env, mode=mode) as folder,
    ):
        finished = folder.finished()
        planned = units(study)
        try:
            with progress_bar() as progress:
                task = progress.add_task("running", total=len(planned), completed=0, what="")
                for unit in planned:
                    progress.update(task, what=unit.variant.name)
                    if unit.id not in finished:
                        _add(folder, unit, pipe, work, environment_key(env))
                    progress.advance(task)
        finally:
            folder.compact()
        runs = _inactive_failed(folder.read("runs")["runs"], planned)
        folder.rewrite("runs", runs)
        if study.output == "image":
            images = folder.read("runs", "images")["images"]
            folder.rewrite("images", scored(images, runs, study, out))
    return out


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


def _add(folder: StudyFolder, unit: Unit, pipe: Any, work: Workload, env: str) -> None:
    """Run one unit and record it, as a failed row if it fails."""
    identity = {"unit": unit.id, "variant": unit.variant.name, "repeat": unit.repeat, "phase": unit.phase}
    study = unit.study
    run_row = identity | {
        "study": study.name,
        "model": study.model,
        "num_steps": unit.num_steps,
        "guidance_scale": unit.guidance_scale,
        "batch": len(unit.pairs),
        "dtype": str(denoiser_of(pipe).dtype).removeprefix("torch."),
        "scheduler": type(pipe.scheduler).__name__,
        "environment": env,
        "status": "ok",
    }
    step_rows: list[dict[str, Any]] = []
    image_rows: list[dict[str, Any]] = []
    try:
        if unit.variant.name in work.unsupported:
            raise Unsupported(work.unsupported[unit.variant.name])
        measured, step_rows, output = observe(pipe, unit, work)
        run_row |= measured | {"sha256": _digest(output, study.output)}
        step_rows = [identity | row for row in step_rows]
        if unit.keeps_images and study.output == "image":
            image_rows = _save(folder.path, unit, output)
    except Unsupported as error:
        run_row |= {"status": "unsupported", "message": str(error)}
    except OSError:
        raise  # no space or no permission: the study's own storage, not the unit
    except Exception as error:  # noqa: BLE001 - whatever a pipeline raises is the unit's outcome
        at = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"
        run_row |= {"status": "failed", "message": message}
    tables = {"runs": [run_row], "steps": step_rows, "images": image_rows}
    folder.add(unit.id, **{table: frame(table, rows) for table, rows in tables.items()})


def _digest(output: Tensor, kind: str) -> str:
    """Of a call's images as they are stored, or of its latents."""
    values = eight_bit(output) if kind == "image" else output.float().cpu()
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()


def _inactive_failed(runs: pd.DataFrame, planned: list[Unit]) -> pd.DataFrame:
    """The runs, those of variants failed that did in no call of the first repeat anything else than the baseline."""
    known = runs.set_index("unit")
    did: dict[str, dict[Any, tuple[Any, str]]] = {}
    for unit in planned:
        row = known.loc[unit.id]
        first = unit.phase == "measured" and unit.repeat == 0
        if first and row["status"] == "ok" and isinstance(row["sha256"], str):
            did.setdefault(unit.variant.name, {})[unit.pairs] = (row["rows"], row["sha256"])
    baseline = did.get(BASELINE)
    inactive = {name for name, calls in did.items() if name != BASELINE and calls == baseline}
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
    compile_s = _compile(pipe, unit, sequential=sequential) if compiled and unit.phase == "warmup" else 0.0
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


def _compile(pipe: Any, unit: Unit, *, sequential: bool) -> float:
    """Seconds that the compiler takes in a call of its own, so that the memory of the next is not the compiler's."""
    running = applied(pipe, unit.variant, guidance_scale=unit.guidance_scale, sequential=sequential)
    with CompileClock() as compiler, running:
        pipe(**call_arguments(unit.study, unit, pipe), output_type="latent")
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


def _save(folder: Path, unit: Unit, images: Float[Tensor, "n 3 height width"]) -> list[dict[str, Any]]:
    pixels = (eight_bit(images) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
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
