"""What is found out before a study runs: whether every call can, and what a denoiser row costs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from sdbench.instruments.cost import NoFormula, denoiser_flop, flop_per_row
from sdbench.instruments.energy import Gauge
from sdbench.instruments.footprint import LiveBytes
from sdbench.models.causes import is_machines, missing_module, require_own
from sdbench.models.layout import set_layout
from sdbench.models.pipeline import Pipeline, Scheduler, call_parameters, denoiser_of
from sdbench.models.registry import load
from sdbench.models.stored_weights import weights_bytes
from sdbench.records.files import first_line
from sdbench.records.names import BASELINE
from sdbench.study.call import Call, ready
from sdbench.study.generation import Generation
from sdbench.study.made import Made
from sdbench.study.sizes import require_judgeable
from sdbench.study.study import Study
from sdbench.study.taught import (
    require_made_for,
    require_no_cache,
    require_noise_of_images,
    require_one_loop,
)
from sdbench.study.units import units
from sdbench.variants.grammar import parse
from sdbench.variants.noise import first_step
from sdbench.variants.rows import first_tensor
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Listener, MissingPackage, Unsupported
from sdbench.variants.variant import Variant

NO_GUIDANCE = Variant("no guidance", GuidanceSchedule.none)
FIXED_ARGUMENTS = {
    "height",
    "latents",
    "negative_prompt",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "output_type",
    "return_dict",
    "width",
}
"""Of a pipeline's call: a study decides them, whether or not it gives them."""


class _Stopped(Exception):
    """Ends a pipeline call before its first evaluation."""


@dataclass(frozen=True)
class Workload:
    """What is known of a study's calls before the first one.

    Attributes:
        flop_per_row: work of a denoiser row; None where it cannot be counted.
        row_peak_bytes: memory of a denoiser row.
        weights_bytes: of the pipeline.
        unsupported: why a variant cannot run here, by its name.
        uncounted: why the work cannot be counted; empty where it is.
        output: what the study's `output` stands for on this pipeline.
        gauge: of the energy of what runs the calls; None where it cannot be read.
    """

    flop_per_row: float | None
    row_peak_bytes: float
    weights_bytes: int
    unsupported: dict[str, str] = field(default_factory=dict)
    uncounted: str = ""
    output: str = "image"
    gauge: Gauge | None = None


def loaded(generation: Generation) -> Pipeline:
    """The pipeline of a generation or a study, opened as its fields say."""
    pipe = load(
        generation.model,
        dtype=generation.dtype,
        device=generation.device,
        random_weights=generation.random_weights,
        weights_variant=generation.weights_variant,
    )
    set_layout(pipe, memory_format=generation.memory_format, threads=generation.threads)
    return pipe


def prepare(pipe: Pipeline, study: Study) -> Workload:
    """Check that a pipeline can run a study, and count the work of a denoiser row.

    Nothing is decoded, except where only an image or a video tells its size.

    Raises:
        ValueError: a pipeline without guidance, a schedule that does not fit the loop, arguments
            that the pipeline does not take, images of a size that a metric does not take, or
            metrics of audio.
    """
    try:
        return _checked(pipe, study)
    except (ValueError, OSError):
        raise
    except Exception as error:
        require_own(error, f"{type(pipe).__name__} cannot run this study")
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{type(pipe).__name__} cannot run this study: {reason}") from error


def _checked(pipe: Pipeline, study: Study) -> Workload:
    require_one_loop(pipe)
    first = units(study)[0]
    _require_arguments(pipe, first.call)
    require_no_cache(pipe)
    two_steps = Call(replace(study.generation, num_steps=2), parse(BASELINE), first.pairs)
    require_noise_of_images(pipe, lambda: _run(pipe, two_steps))

    unsupported = {}
    baseline: list[float] = []
    if any(map(_has_own_list, study.variants)):
        baseline = _timesteps(pipe, replace(first.call, variant=parse(BASELINE)))
    for variant in study.variants:
        call = Call(study, variant, first.pairs)
        if study.execution != "eager" and _changes_denoiser(call):
            raise ValueError(
                f"variant '{variant.name}' changes the compiled network: set execution to eager"
            )
        try:
            _try_variant(pipe, call)
            if _has_own_list(variant):
                _require_same_begin(pipe, call, baseline)
        except Unsupported as error:
            unsupported[variant.name] = str(error)
        except ValueError as error:
            kind = MissingPackage if isinstance(error, MissingPackage) else ValueError
            raise kind(f"variant '{variant.name}': {error}") from None

    # A whole call of one step: what fails after the loop fails now.
    one_step = Call(replace(study.generation, num_steps=1), NO_GUIDANCE, first.pairs)
    made = _run(pipe, one_step)
    study = study.making(made.kind)
    require_judgeable(pipe, study, one_step, made.images)
    return replace(_workload(pipe, study, first.call, unsupported), output=study.output)


def _has_own_list(variant: Variant) -> bool:
    """Whether a variant has timesteps of its own, which should begin where the baseline's do."""
    return variant.pins_start or (variant.scheduler is not None and not variant.stock_start)


def _changes_denoiser(call: Call) -> bool:
    """Whether a variant changes the denoiser, or the numbers of rows that it gets."""
    variant = call.variant
    if variant.student is not None or variant.accelerator is not None:
        return True
    if variant.precision is not None:
        return True
    return variant.policy is not None and variant.policy(call.guidance_scale).shrinks


def _try_variant(pipe: Pipeline, call: Call) -> None:
    """Whether a variant can run, up to its first evaluation.

    Raises:
        Unsupported: not on this pipeline.
        ValueError: not as it is asked for.
    """
    unknown = _unknown_arguments(pipe, call.variant.arguments)
    if unknown:
        raise Unsupported(f"{type(pipe).__name__} takes no {unknown[0]}")
    require_made_for(pipe, call.variant)
    asked = call.variant.num_steps
    if asked is not None and call.generation.lists_steps:
        raise Unsupported(f"it asks for {asked} steps, but the arguments list the timesteps")
    if call.variant.accelerator is not None:
        _try_accelerator(pipe, call)
    _start(pipe, call, _StopAtLoop())


def _require_same_begin(pipe: Pipeline, call: Call, baseline: list[float]) -> None:
    """Refuse a loop of another length that begins elsewhere than the baseline's.

    Args:
        pipe: that runs it.
        call: of the variant.
        baseline: timesteps of the baseline's loop.

    Raises:
        Unsupported: they begin further apart than a step of the baseline.
    """
    first = baseline[0]
    begins = _timesteps(pipe, call)[0]
    second = next((timestep for timestep in baseline if timestep != first), 0.0)
    if abs(begins - first) > abs(first - second):
        stock = f"steps:{call.num_steps},stock"
        hint = f" ({stock} runs all the same)" if call.variant.kind == "steps" else ""
        raise Unsupported(
            f"it begins at timestep {begins:g}, more than one step away from the baseline, which "
            f"begins at {first:g}{hint}"
        )


def _timesteps(pipe: Pipeline, call: Call) -> list[float]:
    """Timesteps from a loop's first one on; image-to-image enters the scheduler's list within."""
    first = _first_evaluation(pipe, call)
    args, kwargs = first.args, first.kwargs
    timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
    listed = torch.as_tensor(first.scheduler.timesteps).tolist()
    return [float(value) for value in listed[first_step(first.scheduler, timestep) :]]


def _require_arguments(pipe: Pipeline, call: Call) -> None:
    """Refuse further arguments that the pipeline does not take, and those that a study gives."""
    arguments = call.generation.arguments
    unknown = _unknown_arguments(pipe, arguments)
    if unknown:  # some pipelines pass over what they do not know
        raise ValueError(f"{type(pipe).__name__} takes no argument '{unknown[0]}'")

    bare = replace(call, generation=replace(call.generation, arguments={}))
    own = FIXED_ARGUMENTS | bare.arguments(pipe).keys()
    taken = sorted(own & set(arguments))
    if taken:
        raise ValueError(
            f"argument '{taken[0]}' is set by the study: use its field of the study, if it has one"
        )


def _unknown_arguments(pipe: Pipeline, arguments: Any) -> list[str]:
    """Names that a pipeline's call does not take."""
    return sorted(set(arguments) - call_parameters(pipe))


def _try_accelerator(pipe: Pipeline, call: Call) -> None:
    """Two steps, in which a method that does not know the pipeline shows itself.

    Raises:
        Unsupported: what it raised; a missing package and a lack of memory or disk are no property
            of the method.
    """
    # Wherever they begin: not every scheduler begins two steps where the baseline begins.
    alone = replace(
        call.variant,
        rule=GuidanceSchedule.full,
        policy=None,
        student=None,
        num_steps=2,
        stock_start=True,
    )
    try:
        _run(pipe, replace(call, variant=alone))
    except (MissingPackage, Unsupported, OSError):
        raise
    except Exception as error:
        kind = type(pipe).__name__
        if is_machines(error):
            raise
        if missing := missing_module(error):
            raise MissingPackage(missing) from error
        raise Unsupported(f"fails on {kind}: {type(error).__name__}: {error}") from error


def _workload(pipe: Pipeline, study: Study, first: Call, unsupported: dict[str, str]) -> Workload:
    """Work and memory of a denoiser row, counted on the arguments of a call's first evaluation."""
    evaluation = _first_evaluation(pipe, first)
    args, kwargs = evaluation.args, evaluation.kwargs
    rows = len(first_tensor((args, kwargs)))
    if study.guidance_execution == "batched" and rows < 2 * len(first.pairs):
        raise ValueError(
            f"{type(pipe).__name__} guides by two calls, which cannot be batched: use sequential"
        )

    denoiser = denoiser_of(pipe)
    there_before = [list(denoiser.parameters()), list(denoiser.buffers()), (args, kwargs)]
    row_flop, uncounted = None, ""
    with LiveBytes(tree_leaves(there_before)) as live:
        try:
            row_flop = flop_per_row(denoiser_flop(denoiser, *args, **kwargs), rows)
        except NoFormula as error:  # quantised layers mostly have none
            uncounted = str(error)
    peak = live.cpu_peak_bytes if pipe.device.type == "cpu" else live.peak_bytes
    return Workload(row_flop, peak / rows, weights_bytes(pipe), unsupported, uncounted)


class _Evaluation(NamedTuple):
    """What the denoiser gets in a call's first evaluation, and under which scheduler."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    scheduler: Scheduler


def _first_evaluation(pipe: Pipeline, call: Call) -> _Evaluation:
    """What a call's first evaluation gets; it does not run."""
    seen: list[_Evaluation] = []

    def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(_Evaluation(args, kwargs, pipe.scheduler))
        raise _Stopped

    hook = denoiser_of(pipe).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        _start(pipe, call)
    finally:
        hook.remove()
    return seen[0]


def loop_length(pipe: Pipeline, generation: Generation) -> int:
    """Iterations that a pipeline's loop really runs for a generation's number of steps."""
    stopped = _StopAtLoop()
    _start(pipe, Call(generation, parse(BASELINE), tuple(generation.pairs[:1])), stopped)
    return stopped.iterations


class _StopAtLoop(Listener):
    """Ends a call before its first evaluation, and keeps how many iterations were to come."""

    iterations = 0

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        self.iterations = iterations
        raise _Stopped


def _start(pipe: Pipeline, call: Call, *listeners: Listener) -> None:
    """Run a call that something ends before its first evaluation."""
    with suppress(_Stopped):
        _run(pipe, call, *listeners)


def _run(pipe: Pipeline, call: Call, *listeners: Listener) -> Made:
    """What a call makes up to its latents, which nobody will judge."""
    with ready(pipe, call, output="latent", listeners=listeners) as run:
        return run()
