"""The seam: where sdbench observes a stock pipeline and decides, step by step, whether it is guided.

Every guided pipeline calls `scheduler.set_timesteps`, then per iteration the denoiser once (conditional and
unconditional rows concatenated) or twice, and `scheduler.step` once. The seam wraps those three on the instance, and
`prepare_latents` to learn the number of rows; nothing here knows a pipeline by name. What listeners make of the events
(times, memory, cosines) is in `instruments`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from sdbench.variants.noise import noise_to_signal
from sdbench.variants.schedule import GuidanceSchedule, ScheduleRule

UNBATCHED = frozenset({"image_rotary_emb", "img_ids", "txt_ids"})
"""Denoiser arguments that have no batch dimension, whatever their first dimension happens to be."""


@dataclass
class Step:
    """One iteration of a denoising loop, filled in as it runs.

    `rows` and `forwards` count what the denoiser evaluated; `requested` the rows that the pipeline asked for.
    `cond` and `uncond` are the two predictions of a guided step, (images, ...).
    """

    call: int
    index: int
    guided: bool = False
    rows: int = 0
    forwards: int = 0
    requested: int = 0
    cond: Tensor | None = None
    uncond: Tensor | None = None
    sample: Tensor | None = None
    timestep: Any = None
    sigma: Tensor | None = None
    output: Any = field(default=None, repr=False)


class Listener:
    """What may be told of a run; the methods do nothing until overridden."""

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """The first denoiser call of a pipeline call is about to run."""

    def denoiser_begins(self, step: Step, rows: int) -> None:
        """The denoiser is about to evaluate this many rows."""

    def denoiser_ends(self, step: Step) -> None:
        """The denoiser has returned."""

    def scheduler_begins(self, step: Step) -> None:
        """`scheduler.step` is about to run; `step.sample` is the noisy latent."""

    def scheduler_ends(self, step: Step) -> None:
        """`scheduler.step` has returned."""

    def step_ends(self, step: Step) -> None:
        """The step is over and `step` is complete, sigma and predictions included."""


class Trace(Listener):
    """What ran: one row per step of every call, whatever was asked for."""

    def __init__(self) -> None:
        """Start without rows."""
        self._steps: list[Step] = []

    def step_ends(self, step: Step) -> None:
        """Keep the step."""
        self._steps.append(step)

    @property
    def steps(self) -> pd.DataFrame:
        """One row per step: call, step, timestep, sigma (noise-to-signal ratio), guided, rows, forwards."""
        rows = [
            {
                "call": step.call,
                "step": step.index,
                "timestep": float(step.timestep),
                "sigma": float(step.sigma) if step.sigma is not None else float("nan"),
                "guided": step.guided,
                "rows": step.rows,
                "forwards": step.forwards,
            }
            for step in self._steps
        ]
        return pd.DataFrame(rows, columns=["call", "step", "timestep", "sigma", "guided", "rows", "forwards"])


@contextmanager
def guided_by(
    pipe: Any, schedule: GuidanceSchedule | ScheduleRule | None, *, listeners: Sequence[Listener] = ()
) -> Iterator[Trace]:
    """Run a pipeline under a guidance schedule for any number of calls; it is as before afterwards.

    On an unguided step only the conditional rows are evaluated, so the pipeline's own `u + w (c - u)` gives exactly
    `c`. A schedule counts the iterations that the loop really runs (51 for PNDM at 50 steps).

    Args:
        pipe: a guided diffusers pipeline with a `unet` or a `transformer`.
        schedule: which steps are guided, or a rule that makes it from the number of iterations; None only observes.
        listeners: told of every event, in order.

    Yields:
        A trace whose `steps` frame holds one row per step that ran.

    Raises:
        ValueError: a schedule of another length than the loop, before its first evaluation; a pipeline without
            guidance; two schedules at once.
    """
    trace = Trace()
    seam = _Seam(pipe, schedule, [trace, *listeners])
    with seam.installed():
        yield trace
        seam.finish()


def denoiser_of(pipe: Any) -> nn.Module:
    """The network that a pipeline calls in its loop."""
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if denoiser is None:
        raise ValueError(f"{type(pipe).__name__} has neither a unet nor a transformer")
    return denoiser


class _Seam:
    def __init__(self, pipe: Any, schedule: GuidanceSchedule | ScheduleRule | None, listeners: list[Listener]) -> None:
        self.pipe, self.listeners = pipe, listeners
        self.denoiser, self.scheduler = denoiser_of(pipe), pipe.scheduler
        self.schedule = schedule
        self.images: int | None = None  # rows of the latents of the call in progress
        self.calls = -1
        self.mask: tuple[bool, ...] | None = None
        self.iterations = 0
        self.index = 0
        self.step: Step | None = None
        self.in_call = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        if hasattr(vars(self.scheduler).get("step"), "sdbench_seam"):
            raise ValueError("this pipeline already runs under a guidance schedule")
        original_call = self.denoiser._compiled_call_impl or self.denoiser._call_impl
        with ExitStack() as undo:
            undo.enter_context(
                _replaced(self.pipe, "prepare_latents", self._prepare_latents(self.pipe.prepare_latents))
            )
            scheduler = self.scheduler
            undo.enter_context(_replaced(scheduler, "set_timesteps", self._set_timesteps(scheduler.set_timesteps)))
            undo.enter_context(_replaced(scheduler, "step", self._scheduler_step(scheduler.step)))
            # `Module.__call__` prefers this attribute, so the hook stays outside accelerate's wrapper of `forward` and
            # outside a compiled graph.
            undo.enter_context(_replaced(self.denoiser, "_compiled_call_impl", self._denoise(original_call)))
            yield

    def finish(self) -> None:
        """Check, when nothing has failed, that the last call went as its schedule says."""
        if self.in_call and self.index != self.iterations:
            raise RuntimeError(f"the loop ended after {self.index} of {self.iterations} steps")

    def _prepare_latents(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            if self.pipe.scheduler is not self.scheduler or denoiser_of(self.pipe) is not self.denoiser:
                raise ValueError("the scheduler or the denoiser was replaced while a schedule holds: replace it before")
            out = original(*args, **kwargs)
            self.images = len(_first_tensor(out))
            return out

        return prepare_latents

    def _set_timesteps(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            self.in_call, self.index, self.iterations, self.step, self.mask = True, 0, 0, None, None
            return out

        return set_timesteps

    def _open_loop(self) -> None:
        """Settle the loop's length and schedule, which are known only when it starts."""
        assert self.images is not None
        self.calls += 1
        # Image-to-image and `denoising_end` shorten the loop after `set_timesteps`; the pipeline then says so here.
        self.iterations = getattr(self.pipe, "_num_timesteps", None) or len(self.scheduler.timesteps)
        if self.schedule is not None:
            schedule = self.schedule if isinstance(self.schedule, GuidanceSchedule) else self.schedule(self.iterations)
            if len(schedule.mask) != self.iterations:
                raise ValueError(f"the schedule has {len(schedule.mask)} steps but the loop runs {self.iterations}")
            self.mask = schedule.mask
        for listener in self.listeners:
            listener.loop_begins(self.calls, self.iterations, self.images)

    def _next_step(self) -> Step:
        if not self.in_call or self.images is None:
            raise RuntimeError("the denoiser ran outside the loop of the pipeline that is observed")
        if self.index == 0:
            self._open_loop()
        if self.index >= self.iterations:
            raise RuntimeError(f"the loop runs on after its {self.iterations} steps")
        return Step(self.calls, self.index)

    def _denoise(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def denoise(*args: Any, **kwargs: Any) -> Any:
            step = self.step = self.step or self._next_step()
            assert self.images is not None
            rows = len(_first_tensor((args, kwargs)))
            step.requested += rows
            drop = self.mask is not None and not self.mask[step.index]
            if rows == 2 * self.images:
                return self._concatenated(original, step, args, kwargs, drop=drop)
            if rows != self.images:
                raise ValueError(f"the denoiser got {rows} rows for {self.images} latents: not a known way of guiding")
            if drop and step.cond is not None:
                return step.output  # the second call of a two-call pipeline, or the third of skip-layer guidance
            out = self._evaluate(original, step, args, kwargs, rows)
            if step.cond is None:
                step.cond, step.output = _first_tensor(out), out
            elif step.uncond is None:
                step.uncond, step.guided = _first_tensor(out), True
            return out

        return denoise

    def _concatenated(self, original: Callable[..., Any], step: Step, args: Any, kwargs: Any, *, drop: bool) -> Any:
        assert self.images is not None
        if drop:
            args, kwargs = _conditional_half((args, kwargs), 2 * self.images)
            out = self._evaluate(original, step, args, kwargs, self.images)
            step.cond, step.output = _first_tensor(out), out
            return _map_tensors(out, lambda tensor: torch.cat([tensor, tensor]))
        out = self._evaluate(original, step, args, kwargs, 2 * self.images)
        step.uncond, step.cond = _first_tensor(out).chunk(2)
        step.guided = True
        return out

    def _evaluate(self, original: Callable[..., Any], step: Step, args: Any, kwargs: Any, rows: int) -> Any:
        for listener in self.listeners:
            listener.denoiser_begins(step, rows)
        out = original(*args, **kwargs)
        step.rows += rows
        step.forwards += 1
        for listener in self.listeners:
            listener.denoiser_ends(step)
        return out

    def _scheduler_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def scheduler_step(*args: Any, **kwargs: Any) -> Any:
            step, self.step = self.step, None
            if step is None:
                raise RuntimeError("a step ran in which the denoiser was not seen")
            if step.index == 0 and self.mask is not None and step.requested < 2 * (self.images or 0):
                raise ValueError(
                    f"{type(self.pipe).__name__} runs without guidance here, so there is none to drop "
                    "(guidance_scale of 1 or less, or a model that needs no guidance)"
                )
            given = signature.bind(*args, **kwargs).arguments
            step.timestep, step.sample = given.get("timestep"), given.get("sample")
            for listener in self.listeners:
                listener.scheduler_begins(step)
            out = original(*args, **kwargs)
            for listener in self.listeners:
                listener.scheduler_ends(step)
            self._name_noise(step)
            for listener in self.listeners:
                listener.step_ends(step)
            step.cond = step.uncond = step.sample = step.output = None
            self.index += 1
            return out

        scheduler_step.sdbench_seam = True  # type: ignore[attr-defined]
        return scheduler_step

    def _name_noise(self, step: Step) -> None:
        assert step.cond is not None
        after = getattr(self.scheduler, "step_index", None)
        index = None if after is None else after - 1
        step.sigma = noise_to_signal(self.scheduler, step.timestep, index, step.cond.device)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute on an instance and take it off again, restoring only what is still ours."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if vars(owner).get(name, missing) is value:
            if before is missing:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


def _first_tensor(tree: Any) -> Tensor:
    """The first tensor with a batch dimension in nested arguments or outputs."""
    if isinstance(tree, Tensor) and tree.ndim > 0:
        return tree
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    for child in children:
        try:
            return _first_tensor(child)
        except LookupError:
            continue
    raise LookupError("no tensor with a batch dimension")


def _map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, BaseOutput):
        return type(tree)(**{key: _map_tensors(value, change) for key, value in tree.items()})
    if isinstance(tree, dict):
        return {key: value if key in UNBATCHED else _map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map_tensors(value, change) for value in tree)
    return tree


def _conditional_half(tree: Any, rows: int) -> Any:
    """Nested arguments with the second half of every tensor that has this many rows."""
    return _map_tensors(tree, lambda t: t[rows // 2 :] if t.ndim > 0 and len(t) == rows else t)
