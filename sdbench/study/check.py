"""What is found out before a study runs: whether every call can, and what a denoiser row costs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from sdbench.instruments.cost import denoiser_flop, flop_per_row
from sdbench.instruments.footprint import LiveBytes
from sdbench.instruments.memory import weights_bytes
from sdbench.models.registry import load, set_layout
from sdbench.records.files import first_line
from sdbench.study.call import call_arguments
from sdbench.study.study import Study
from sdbench.study.units import Unit, units
from sdbench.variants.adapters import applied
from sdbench.variants.guidance import denoiser_of, guided_by
from sdbench.variants.registry import Variant, parse
from sdbench.variants.rows import first_tensor
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Listener, MissingPackage, Unsupported


class _Stopped(Exception):
    """Ends a pipeline call before its first evaluation."""


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


def loaded(study: Study) -> Any:
    """The pipeline of a study, opened as its fields say."""
    pipe = load(
        study.model, dtype=study.dtype, device=study.device, random_weights=study.random_weights
    )
    set_layout(pipe, memory_format=study.memory_format, threads=study.threads)
    return pipe


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
            raise ValueError(
                f"variant '{variant.name}' changes what is compiled in: execution must be eager"
            )
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
        pipe(
            **call_arguments(study, first, pipe) | {"num_inference_steps": 1}, output_type="latent"
        )

    hook = denoiser_of(pipe).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        _start(pipe, first, None)
    finally:
        hook.remove()
    args, kwargs = seen[0]
    rows = len(first_tensor(seen[0]))
    if study.guidance_execution == "batched" and rows < 2 * len(first.pairs):
        raise ValueError(f"{type(pipe).__name__} guides by two calls, which cannot be batched")
    outside = tree_leaves(
        [list(denoiser_of(pipe).parameters()), list(denoiser_of(pipe).buffers()), seen[0]]
    )
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
        raise Unsupported(
            f"fails on {type(pipe).__name__}: {type(error).__name__}: {error}"
        ) from error


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
