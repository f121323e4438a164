"""The seam: where sdbench observes a stock pipeline and decides, step by step, whether it is guided.

Every guided pipeline calls `scheduler.set_timesteps`, then per iteration the denoiser once (conditional and
unconditional rows concatenated) or twice, and `scheduler.step` once. The seam wraps those three on the instance, and
`prepare_latents` to learn the number of rows; what a pipeline evaluates beside its denoiser (a ControlNet) is halved
with it. What listeners make of the events (times, memory, cosines) is in `instruments`.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sdbench.variants.branches import Branches, Half
from sdbench.variants.noise import noise_to_signal
from sdbench.variants.policies import Loop, Policy
from sdbench.variants.rows import (
    doubled,
    first_tensor,
    halves,
    joined,
    map_tensors,
    select,
    tensors,
)
from sdbench.variants.schedule import GuidanceSchedule, ScheduleRule
from sdbench.variants.trace import Listener, Step, Trace

CONDITIONAL_FIRST = frozenset({"LuminaPipeline"})
"""Pipelines known to put the conditional rows first; others are found out at their first guided step."""
OWN_NOISE = "draws noise that is not the rows' own, so rows of one image would not stay the same: it cannot branch"


@contextmanager
def guided_by(
    pipe: Any,
    schedule: GuidanceSchedule | ScheduleRule | Branches | Policy | None,
    *,
    listeners: Sequence[Listener] = (),
    sequential: bool = False,
) -> Iterator[Trace]:
    """Run a pipeline under a guidance schedule for any number of calls; it is as before afterwards.

    On an unguided step only the conditional rows are evaluated, so the pipeline's own `u + w (c - u)` gives exactly
    `c`. A schedule counts the iterations that the loop really runs (51 for PNDM at 50 steps). A step that the pipeline
    itself leaves unguided (Lumina 2's `cfg_trunc_ratio`) stays so; the trace says what ran.

    Args:
        pipe: a guided diffusers pipeline with a `unet` or a `transformer` (and a `transformer_2`, as Wan 2.2 has).
        schedule: which steps are guided, or a rule that makes it from the number of iterations; a policy, which decides
            while the loop runs; branches, for a call whose rows follow masks of their own; None only observes.
        listeners: told of every event, in order.
        sequential: evaluate the two halves of a guided step one after the other where the pipeline concatenates them.

    Yields:
        A trace whose `steps` frame holds one row per step that ran.

    Raises:
        ValueError: a schedule of another length than the loop, before its first evaluation; a pipeline without
            guidance, or that guides in a way of its own; two schedules at once.
    """
    trace = Trace()
    deciding = [schedule] if isinstance(schedule, Policy) else []
    seam = _Seam(pipe, schedule, [trace, *deciding, *listeners], sequential=sequential)
    with seam.installed():
        yield trace
        seam.finish()


def denoisers_of(pipe: Any) -> list[nn.Module]:
    """The networks that a pipeline calls in its loop: one, or two that share the steps between them."""
    found = [getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2")]
    denoisers = [module for module in found if module is not None]
    if not denoisers:
        raise ValueError(f"{type(pipe).__name__} has neither a unet nor a transformer")
    return denoisers


def denoiser_of(pipe: Any) -> nn.Module:
    """The network that a pipeline calls in its loop; the first one where there are two."""
    return denoisers_of(pipe)[0]


def guidance_arguments(
    pipe: Any, guidance_scale: float, *, rows: int, negative_prompt: str | None = None
) -> dict[str, Any]:
    """How a call asks for guidance.

    A pipeline that also takes a scale which its model was trained on (Flux, Qwen-Image) guides by `true_cfg_scale`, and
    only if it is given a negative prompt.
    """
    true_guidance = "true_cfg_scale" in inspect.signature(type(pipe).__call__).parameters
    negative = "" if negative_prompt is None and true_guidance else negative_prompt
    asked = {"true_cfg_scale" if true_guidance else "guidance_scale": guidance_scale}
    return asked if negative is None else asked | {"negative_prompt": [negative] * rows}


class _Seam:
    def __init__(
        self,
        pipe: Any,
        schedule: GuidanceSchedule | ScheduleRule | Branches | Policy | None,
        listeners: list[Listener],
        *,
        sequential: bool,
    ) -> None:
        self.pipe, self.listeners, self.sequential = pipe, listeners, sequential
        self.denoisers, self.scheduler = denoisers_of(pipe), pipe.scheduler
        self.schedule = schedule
        self.images: int | None = None  # rows of the latents of the call in progress
        self.latents: tuple[int, ...] = ()  # their shape
        self.calls = -1
        self.mask: tuple[bool, ...] | None = None
        self.iterations = 0
        self.index = 0
        self.step: Step | None = None
        self.in_call = False
        self.fitted_scale: Tensor | None = None  # of the first guided step of the call in progress
        self.random_state: Tensor | None = None  # of the global generator when branches began

    @contextmanager
    def installed(self) -> Iterator[None]:
        if hasattr(vars(self.scheduler).get("step"), "sdbench_seam"):
            raise ValueError("this pipeline already runs under a guidance schedule")
        if not hasattr(self.pipe, "prepare_latents"):
            raise ValueError(
                f"{type(self.pipe).__name__} has no prepare_latents: not a pipeline that makes latents"
            )
        scheduler = self.scheduler
        with ExitStack() as undo:
            for owner, name, wrap in (
                (self.pipe, "prepare_latents", self._prepare_latents),
                (scheduler, "set_timesteps", self._set_timesteps),
                (scheduler, "step", self._scheduler_step),
            ):
                undo.enter_context(replaced(owner, name, wrap(getattr(owner, name))))
            undo.enter_context(
                replaced(scheduler, "__deepcopy__", functools.partial(_bare_copy, scheduler))
            )
            for denoiser in self.denoisers:
                undo.enter_context(call_replaced(denoiser, self._denoise))
            if isinstance(controlnet := getattr(self.pipe, "controlnet", None), nn.Module):
                undo.enter_context(call_replaced(controlnet, self._accompany))
            yield

    def finish(self) -> None:
        """Check, when nothing has failed, that the last call went as its schedule says."""
        self._check_order()
        if self.in_call and self.index != self.iterations:
            raise RuntimeError(f"the loop ended after {self.index} of {self.iterations} steps")

    def _prepare_latents(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            if (
                self.pipe.scheduler is not self.scheduler
                or denoisers_of(self.pipe) != self.denoisers
            ):
                raise ValueError(
                    "the scheduler or the denoiser was replaced while a schedule holds: replace it before"
                )
            out = original(*args, **kwargs)
            self.latents = tuple(first_tensor(out).shape)
            self.images = self.latents[0]
            return out

        return prepare_latents

    def _set_timesteps(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self._check_order()
            out = original(*args, **kwargs)
            self.in_call, self.index, self.iterations, self.step, self.mask = True, 0, 0, None, None
            self.fitted_scale = None
            return out

        return set_timesteps

    def _open_loop(self, timestep: Any) -> None:
        """Settle the loop's length and schedule, which are known only when it starts."""
        assert self.images is not None
        self.calls += 1
        # Image-to-image and `denoising_end` shorten the loop after `set_timesteps`; the pipeline then says so here.
        self.iterations = getattr(self.pipe, "_num_timesteps", None) or len(
            self.scheduler.timesteps
        )
        if self.schedule is not None and type(self.pipe).__name__ in CONDITIONAL_FIRST:
            raise ValueError(
                f"{type(self.pipe).__name__} puts its conditional rows first: not supported"
            )
        if isinstance(self.schedule, Branches):
            self._require_length(self.schedule.length)
            if "SDE" in type(self.scheduler).__name__:
                raise ValueError(f"{type(self.scheduler).__name__} {OWN_NOISE}")
            self.random_state = _random_state(self.pipe)
            if self.images != self.schedule.images * len(self.schedule.masks):
                raise ValueError(
                    f"the call has {self.images} rows, not one for each image and mask"
                )
        elif isinstance(self.schedule, Policy):
            timesteps, sigmas = self._levels(timestep)
            cuda = self.pipe.device.type == "cuda"
            self.schedule.begins(
                Loop(self.iterations, self.latents, timesteps, sigmas, self.scheduler, cuda)
            )
        elif self.schedule is not None:
            schedule = (
                self.schedule
                if isinstance(self.schedule, GuidanceSchedule)
                else self.schedule(self.iterations)
            )
            self._require_length(len(schedule.mask))
            if schedule.scheduler not in (None, type(self.scheduler).__name__):
                found = type(self.scheduler).__name__
                raise ValueError(
                    f"the schedule is made for {schedule.scheduler} but the pipeline has {found}"
                )
            self.mask = schedule.mask
        for listener in self.listeners:
            listener.loop_begins(self.calls, self.iterations, self.images)

    def _require_length(self, steps: int) -> None:
        if steps != self.iterations:
            raise ValueError(f"the schedule has {steps} steps but the loop runs {self.iterations}")

    def _levels(self, timestep: Any) -> tuple[list[float], list[float]]:
        """Timestep and sigma of every iteration of a loop that begins with this timestep of the denoiser.

        A loop may begin within the scheduler's steps; schedulers that count say where, of others the timestep does.
        """
        timesteps = self.scheduler.timesteps.tolist()
        begin = getattr(self.scheduler, "begin_index", None)
        if begin is None:
            first = float(torch.as_tensor(timestep).flatten()[0])
            begin = timesteps.index(first) if first in timesteps else 0
        steps = range(begin, begin + self.iterations)
        sigmas = [
            noise_to_signal(self.scheduler, timesteps[step], step, torch.device("cpu"))
            for step in steps
        ]
        return [float(timesteps[step]) for step in steps], [float(sigma) for sigma in sigmas]

    def _next_step(self, timestep: Any = None) -> Step:
        if not self.in_call or self.images is None:
            raise RuntimeError(
                "the denoiser ran outside the loop of the pipeline that is observed, "
                "or the pipeline was given latents that it does not prepare"
            )
        if self.index == 0:
            self._open_loop(timestep)
        if self.index >= self.iterations:
            raise RuntimeError(f"the loop runs on after its {self.iterations} steps")
        return Step(self.calls, self.index)

    def _denoise(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def denoise(*args: Any, **kwargs: Any) -> Any:
            timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
            step = self.step = self.step or self._next_step(timestep)
            assert self.images is not None
            rows = len(first_tensor((args, kwargs)))
            step.requested += rows
            if isinstance(self.schedule, Policy) and rows in (self.images, 2 * self.images):
                return self._decided(original, step, args, kwargs, both=rows == 2 * self.images)
            drop = self._drops(step)
            if rows == 2 * self.images:
                return self._concatenated(original, step, args, kwargs, drop=drop)
            if isinstance(self.schedule, Branches) and rows == self.images:
                return self._branched(original, step, args, kwargs)
            if rows != self.images:
                raise ValueError(
                    f"{type(self.pipe).__name__} evaluates {rows} rows for {self.images} latents: guidance of its own "
                    "kind (perturbed attention, or an image beside the text), which cannot be dropped by halves"
                )
            if drop and step.cond is not None:
                return (
                    step.output
                )  # the second call of a two-call pipeline, or the third of skip-layer guidance
            out = self._evaluate(original, step, args, kwargs, rows)
            if step.cond is None:
                step.cond, step.output = first_tensor(out), out
            elif step.uncond is None:
                step.uncond, step.guided = first_tensor(out), True
            return out

        return denoise

    def _drops(self, step: Step) -> bool:
        if isinstance(self.schedule, Policy):
            return self.schedule.evaluated(step.index) == []
        return self.mask is not None and not self.mask[step.index]

    def _accompany(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A network that feeds the denoiser evaluates no more rows than the denoiser needs."""

        def accompany(*args: Any, **kwargs: Any) -> Any:
            step = self.step = self.step or self._next_step(
                args[1] if len(args) > 1 else kwargs.get("timestep")
            )
            rows = len(first_tensor((args, kwargs)))
            if self._drops(step) and rows == 2 * (self.images or 0):
                args, kwargs = halves((args, kwargs), rows)[1]
                return doubled(original(*args, **kwargs))
            return original(*args, **kwargs)

        return accompany

    def _branched(self, original: Callable[..., Any], step: Step, args: Any, kwargs: Any) -> Any:
        """One of the two calls of a pipeline whose rows follow masks of their own."""
        assert isinstance(self.schedule, Branches)
        if step.uncond is not None:
            raise ValueError(
                f"{type(self.pipe).__name__} evaluates its rows a third time: its branches are not told"
            )
        half: Half = "cond" if step.cond is None else "uncond"
        evaluate = functools.partial(self._evaluate, original, step)
        out = self.schedule.evaluate(step.index, half, evaluate, args, kwargs)
        setattr(step, half, first_tensor(out))
        step.guided = half == "uncond" and self.schedule.guided(step.index)
        return out

    def _decided(
        self, original: Callable[..., Any], step: Step, args: Any, kwargs: Any, *, both: bool
    ) -> Any:
        """A call of the denoiser under a policy: both halves in one, or one of two, the conditional one first."""
        assert isinstance(self.schedule, Policy)
        assert self.images is not None
        if not both and step.cond is None:
            out = self._evaluate(original, step, args, kwargs, self.images)
            step.cond, step.output = first_tensor(out), out
            return out
        if step.given is not None:
            raise ValueError(
                f"{type(self.pipe).__name__} evaluates its rows a third time: its policy is not told"
            )
        every = list(range(self.images))
        wanted = self.schedule.evaluated(step.index)
        wanted = every if wanted is None else wanted
        rows, index = (
            (2 * self.images, wanted + [self.images + image for image in every])
            if both
            else (self.images, wanted)
        )
        out, uncond = step.output, None
        if index:
            parts = (
                [wanted, index[len(wanted) :]] if self.sequential and both and wanted else [index]
            )
            outputs = []
            for part in parts:
                some, named = self._of_rows(args, kwargs, rows, part)
                outputs.append(self._evaluate(original, step, some, named, len(part)))
            out, found = outputs[-1], torch.cat([first_tensor(output) for output in outputs])
            uncond = found[: len(wanted)] if wanted else None
            step.cond = found[len(wanted) :] if both else step.cond
        if sum(1 for _ in tensors(out)) != 1:
            raise ValueError(
                "the denoiser returns more than one tensor, so its rows cannot be told apart"
            )
        assert step.cond is not None
        given = self.schedule.unconditional(step.index, step.cond, uncond)
        step.given = uncond if given is None else given
        assert step.given is not None
        step.guided, step.uncond = bool(wanted), uncond if len(wanted) == self.images else None
        passed = torch.cat([step.given, step.cond]) if both else step.given
        return map_tensors(out, lambda _: passed)

    @staticmethod
    def _of_rows(args: Any, kwargs: Any, rows: int, part: list[int]) -> Any:
        """Some rows of the arguments; halves are views."""
        if len(part) == rows:
            return args, kwargs
        for half in (0, 1):
            if rows % 2 == 0 and part == list(range(half * rows // 2, (half + 1) * rows // 2)):
                return halves((args, kwargs), rows)[half]
        return select((args, kwargs), rows, part)

    def _concatenated(
        self, original: Callable[..., Any], step: Step, args: Any, kwargs: Any, *, drop: bool
    ) -> Any:
        assert self.images is not None
        if isinstance(self.schedule, Branches):
            evaluate = functools.partial(self._evaluate, original, step)
            out = self.schedule.evaluate(step.index, None, evaluate, args, kwargs)
            step.uncond, step.cond = first_tensor(out).chunk(2)
            step.guided = self.schedule.guided(step.index)
            return out
        if drop:
            args, kwargs = halves((args, kwargs), 2 * self.images)[1]
            out = self._evaluate(original, step, args, kwargs, self.images)
            step.cond, step.output = first_tensor(out), out
            return doubled(out)
        if self.sequential:
            parts = halves((args, kwargs), 2 * self.images)
            out = joined(
                *(self._evaluate(original, step, part[0], part[1], self.images) for part in parts)
            )
        else:
            out = self._evaluate(original, step, args, kwargs, 2 * self.images)
        step.uncond, step.cond = first_tensor(out).chunk(2)
        step.guided = True
        return out

    def _evaluate(
        self, original: Callable[..., Any], step: Step, args: Any, kwargs: Any, rows: int
    ) -> Any:
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
            if (
                step.index == 0
                and self.schedule is not None
                and step.requested < 2 * (self.images or 0)
            ):
                raise ValueError(
                    f"{type(self.pipe).__name__} runs without guidance here, so there is none to drop "
                    "(guidance_scale of 1 or less, or a model whose guidance is distilled or embedded)"
                )
            given = signature.bind(*args, **kwargs).arguments
            step.timestep, step.sample = given.get("timestep"), given.get("sample")
            # A third evaluation (skip-layer guidance) adds a term of its own: such a step tells nothing about the rows.
            plainly_guided = step.guided and step.requested == 2 * (self.images or 0)
            uncond = step.uncond if step.given is None else step.given
            if self.fitted_scale is None and plainly_guided and self.schedule is not None:
                assert step.cond is not None
                assert uncond is not None
                self.fitted_scale = fitted_scale(given["model_output"], step.cond, uncond)
            for listener in self.listeners:
                listener.scheduler_begins(step)
            out = original(*args, **kwargs)
            step.result = first_tensor(out)
            for listener in self.listeners:
                listener.scheduler_ends(step)
            self._name_noise(step)
            for listener in self.listeners:
                listener.step_ends(step)
            step.cond = step.uncond = step.given = step.sample = step.result = step.output = None
            self.index += 1
            if self.index == self.iterations:
                self.images = None  # every call says anew
                if self.random_state is not None and not torch.equal(
                    self.random_state, _random_state(self.pipe)
                ):
                    raise ValueError(
                        f"{type(self.pipe).__name__} with {type(self.scheduler).__name__} {OWN_NOISE}"
                    )
            return out

        scheduler_step.sdbench_seam = True  # type: ignore[attr-defined]
        return scheduler_step

    def _check_order(self) -> None:
        """Refuse a pipeline whose conditional rows come first: after its loop, which must not wait for the device."""
        if self.fitted_scale is None:
            return
        scale = float(self.fitted_scale)
        if (
            scale < 0.5
        ):  # 1 - w where they have changed places; NaN, of two equal predictions, tells nothing
            raise ValueError(
                f"{type(self.pipe).__name__} does not guide as u + w (c - u) with w above 1 and the unconditional rows "
                f"first (its first guided step has w = {scale:.2f}): not supported"
            )

    def _name_noise(self, step: Step) -> None:
        assert step.cond is not None
        after = getattr(self.scheduler, "step_index", None)
        index = None if after is None else after - 1
        step.sigma = noise_to_signal(self.scheduler, step.timestep, index, step.cond.device)


def fitted_scale(
    guided: Float[Tensor, "n ..."], cond: Float[Tensor, "n ..."], uncond: Float[Tensor, "n ..."]
) -> Float[Tensor, ""]:
    """The scale w of a guided prediction `a (u + w (c - u))`, by least squares, whatever the factor a.

    The factor is that of `guidance_rescale` and of other normalisations. Below 1 the two predictions have changed
    places; NaN where they are equal.

    Args:
        guided: what reached the scheduler.
        cond: the conditional prediction c; may have further channels (a learned variance).
        uncond: the unconditional prediction u, of the same shape.
    """
    u, c = (part.narrow(1, 0, guided.shape[1]).float().flatten() for part in (uncond, cond))
    d, o = c - u, guided.float().flatten()
    return ((u @ u) * (d @ o) - (u @ d) * (u @ o)) / ((d @ d) * (u @ o) - (u @ d) * (d @ o))


def _random_state(pipe: Any) -> Tensor:
    """State of the global generator that a pipeline's device uses."""
    return (
        torch.cuda.get_rng_state(pipe.device)
        if pipe.device.type == "cuda"
        else torch.get_rng_state()
    )


@contextmanager
def call_replaced(
    module: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Wrap what calling a module runs.

    `Module.__call__` prefers this attribute, so the hook stays outside accelerate's wrapper of `forward` and outside a
    compiled graph.
    """
    with replaced(
        module, "_compiled_call_impl", wrap(module._compiled_call_impl or module._call_impl)
    ):
        yield


def _bare_copy(scheduler: Any, memo: dict[int, Any]) -> Any:
    """A deep copy of a scheduler without the wrappers, which would act on the original."""
    bare = copy.copy(scheduler)
    for name in ("set_timesteps", "step", "__deepcopy__"):
        with suppress(KeyError):
            del vars(bare)[name]
    return copy.deepcopy(bare, memo)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
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
