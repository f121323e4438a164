"""How a pipeline lies on the machine: memory format and threads, on the CPU chosen by measuring."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from sdbench.models.pipeline import LatentPipeline, Pipeline, denoiser_of, invoke
from sdbench.models.processor import busy_s, own_s

LARGE = 100e6  # parameters of a denoiser whose layout is not chosen
HELD = 0.5
"""Cores that others take from which one counts as held. A step whose threads wait for each other at
barriers then waits for the one that shares its core."""
PATIENCE = 0.25
"""By how much of their time more threads must be faster where others hold a core: what they gain in
the middle they lose in the spread of the steps, which about doubles."""

_LAYOUTS: dict[tuple[Any, ...], dict[str, Any]] = {}


def layout(pipe: Pipeline) -> dict[str, Any]:
    """What the environment record says of it: device, memory format, threads."""
    # A kernel of one pixel or one channel is contiguous in both formats.
    kernels = [
        weight
        for weight in denoiser_of(pipe).parameters()
        if weight.ndim == 4 and min(weight.shape[1:3]) > 1
    ]
    last = bool(kernels) and all(
        weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels
    )
    return {
        "device": str(pipe.device),
        "memory_format": "channels_last" if last else "contiguous",
        "threads": torch.get_num_threads(),
    }


def set_layout(pipe: Pipeline, *, memory_format: str | None, threads: int | None) -> None:
    """Give a pipeline's denoiser a memory format, and torch a number of threads.

    Args:
        pipe: the pipeline.
        memory_format: `channels_last` or `contiguous`; None leaves it as it is.
        threads: None leaves them as they are.
    """
    if memory_format is not None:
        last = memory_format == "channels_last"
        denoiser_of(pipe).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    if threads is not None:
        torch.set_num_threads(threads)


def lay_out(pipe: LatentPipeline) -> None:
    """Choose a layout and apply it.

    It is chosen once in a process for every form of denoiser, so that a pipeline that is opened
    twice computes the same sums.
    """
    settings = pipe.unet.config.items()
    form = sorted((name, repr(value)) for name, value in settings if not name.startswith("_"))
    key = (*form, pipe.unet.dtype, torch.get_num_threads())
    if key not in _LAYOUTS:
        choose_layout(pipe.unet, lambda: _one_step(pipe))
        chosen = layout(pipe)
        # The choice may have changed the threads, and the next pipeline is opened under those.
        _LAYOUTS[key] = _LAYOUTS[(*form, pipe.unet.dtype, chosen["threads"])] = chosen
    set_layout(pipe, memory_format=_LAYOUTS[key]["memory_format"], threads=_LAYOUTS[key]["threads"])


def choose_layout(
    denoiser: torch.nn.Module, step: Callable[[], None], *, margin: float = 0.05
) -> None:
    """Set the memory format and the number of threads under which a step is fastest on this CPU.

    The default stays unless another choice is faster by `margin` in interleaved timings. Where
    other processes hold cores meanwhile, fewer threads are the default, and more have to be faster
    by a quarter. A denoiser of over 100 M parameters, or one whose step takes over a second, is
    left alone: choosing would cost minutes, and large convolutions gain nothing from
    `channels_last`.
    """
    if sum(parameter.numel() for parameter in denoiser.parameters()) > LARGE:
        return
    step()
    started = time.perf_counter()
    step()
    if time.perf_counter() - started > 1:
        return

    def memory_format(chosen: torch.memory_format) -> Callable[[], Any]:
        return lambda: denoiser.to(memory_format=chosen)

    def threads(chosen: int) -> Callable[[], None]:
        return lambda: torch.set_num_threads(chosen)

    formats = [memory_format(torch.contiguous_format), memory_format(torch.channels_last)]
    began_s, before_s = time.perf_counter(), busy_s() - own_s()
    _fastest(formats, step, margin)
    foreign_s = busy_s() - own_s() - before_s
    load = foreign_s / max(time.perf_counter() - began_s, 1e-9)

    # Half the threads pay where two of them share a core, and where others hold the rest.
    cores = torch.get_num_threads()
    held = max(0, math.floor(load + 1 - HELD))
    counts = sorted({count for count in (cores // 2, cores - held, cores) if count > 0})
    if len(counts) > 1:
        choices = [threads(count) for count in (counts if held else reversed(counts))]
        _fastest(choices, step, PATIENCE if held else margin)


def _fastest(
    choices: list[Callable[[], Any]], step: Callable[[], None], margin: float, rounds: int = 7
) -> None:
    """Apply the choice whose steps are fast, and seldom slow; the first is the default.

    A choice is judged by the upper quartile of its times: one that spikes now and then is not
    blamed for it, and one that does so in every third step is. It takes the default's place where
    that is smaller by the margin, and its step was the faster one in all rounds but one: noise
    alone does so in one choice of sixteen.
    """
    seconds: list[list[float]] = [[] for _ in choices]
    for _ in range(rounds):
        for apply, taken in zip(choices, seconds, strict=True):
            apply()
            step()  # warms up what the choice changed
            started = time.perf_counter()
            step()
            taken.append(time.perf_counter() - started)

    slow = [statistics.quantiles(taken, n=4)[-1] for taken in seconds]
    best = min(range(len(choices)), key=slow.__getitem__)
    won = sum(own < default for own, default in zip(seconds[best], seconds[0], strict=True))
    pays = slow[best] < (1 - margin) * slow[0] and won >= rounds - 1
    choices[best if pays else 0]()


def _one_step(pipe: Pipeline) -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    arguments = {"prompt": [""] * 4, "num_inference_steps": 1, "output_type": "latent"}
    invoke(pipe, arguments | {"generator": generator})
