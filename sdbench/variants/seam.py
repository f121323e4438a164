"""The seam: the calls of a stock pipeline where sdbench looks on and a policy decides.

Every guided pipeline calls `scheduler.set_timesteps`, then per iteration the denoiser once
(unconditional and conditional rows concatenated) or twice, and `scheduler.step` once. The seam
wraps those three on the instance, and `prepare_latents` to learn the number of rows. What a
pipeline evaluates next to its denoiser (a ControlNet) is halved with it. Which rows are evaluated
is the policy's to say (`policy.py`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from sdbench.models.pipeline import Pipeline, denoisers_of
from sdbench.variants.evaluation import DenoiserCall, answer
from sdbench.variants.fitted_scale import fitted_scale, require_order
from sdbench.variants.hooks import bare_copy, call_replaced, replaced
from sdbench.variants.noise import noise_levels, noise_to_signal
from sdbench.variants.policy import HALVES, Half, Loop, Policy
from sdbench.variants.rows import doubled, first_tensor, halves
from sdbench.variants.trace import Listener, Step

CONDITIONAL_FIRST = frozenset({"LuminaPipeline"})
"""Pipelines known to put the conditional rows first; others show it at their first guided step."""
OWN_NOISE = (
    "draws noise that is not the rows' own, so rows of one image would not stay the same: "
    "it cannot branch"
)


@dataclass
class _Run:
    """One loop of one pipeline call, from `set_timesteps` on.

    `fitted_scale` is that of the first guided step, `random_state` that of the global generator at
    the start.
    """

    iterations: int = 0
    index: int = 0
    step: Step | None = None
    fitted_scale: Float[Tensor, ""] | None = None
    random_state: UInt8[Tensor, " bytes"] | None = None


class Seam:
    """The wrappers around one pipeline, and the loop that is in progress.

    Args:
        pipe: a guided pipeline.
        policy: decides which rows are evaluated.
        listeners: get every event, in order.
        sequential: evaluate the two halves of a guided step one after the other.
    """

    def __init__(
        self, pipe: Pipeline, policy: Policy, listeners: Sequence[Listener], *, sequential: bool
    ) -> None:
        """Wrap nothing yet."""
        self.pipe = pipe
        self.policy = policy
        self.listeners = list(listeners)
        self.sequential = sequential
        self.denoisers = denoisers_of(pipe)
        self.scheduler: Any = pipe.scheduler
        # Shape and device of the latents that the call in progress prepared.
        self.latents: tuple[int, ...] = ()
        self.device = torch.device("cpu")
        self.calls = 0
        self.run: _Run | None = None

    @property
    def images(self) -> int:
        """Rows of the latents in progress; 0 where there are none yet."""
        return self.latents[0] if self.latents else 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap the pipeline's calls for the length of a block.

        Raises:
            ValueError: the pipeline is wrapped already, or does not prepare latents.
        """
        scheduler = self.scheduler
        if hasattr(vars(scheduler).get("step"), "sdbench_seam"):
            raise ValueError("this pipeline already runs under a guidance schedule")
        if not hasattr(self.pipe, "prepare_latents"):
            raise ValueError(
                f"{type(self.pipe).__name__} has no prepare_latents: "
                "not a pipeline that makes latents"
            )

        with ExitStack() as undo:
            for owner, name, wrap in (
                (self.pipe, "prepare_latents", self._prepare_latents),
                (scheduler, "set_timesteps", self._set_timesteps),
                (scheduler, "step", self._scheduler_step),
            ):
                undo.enter_context(replaced(owner, name, wrap(getattr(owner, name))))

            # A pipeline may copy its scheduler; the copy must not act on the original.
            copying = functools.partial(bare_copy, scheduler)
            undo.enter_context(replaced(scheduler, "__deepcopy__", copying))

            for denoiser in self.denoisers:
                undo.enter_context(call_replaced(denoiser, self._denoise))
            if isinstance(controlnet := getattr(self.pipe, "controlnet", None), nn.Module):
                undo.enter_context(call_replaced(controlnet, self._accompany))
            yield

    def finish(self) -> None:
        """Check, when nothing has failed, that the last call went as its schedule says."""
        self._check_order()
        run = self.run
        if run is not None and run.index != run.iterations:
            raise RuntimeError(f"the loop ended after {run.index} of {run.iterations} steps")

    def _prepare_latents(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            if (
                self.pipe.scheduler is not self.scheduler
                or denoisers_of(self.pipe) != self.denoisers
            ):
                raise ValueError(
                    "the scheduler or the denoiser was replaced while a schedule holds: "
                    "replace it before"
                )
            out = original(*args, **kwargs)
            latents = first_tensor(out)
            self.latents = tuple(latents.shape)
            self.device = latents.device
            return out

        return prepare_latents

    def _set_timesteps(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)  # pipelines inspect the signature
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self._check_order()
            out = original(*args, **kwargs)
            self.run = _Run()
            return out

        return set_timesteps

    def _begin_loop(self, run: _Run, timestep: Any) -> None:
        """Settle the loop's length, which is known only now, and tell the policy of it."""
        kind = type(self.pipe).__name__
        # Image-to-image and `denoising_end` shorten the loop after `set_timesteps`.
        shortened = getattr(self.pipe, "_num_timesteps", None)
        run.iterations = shortened or len(self.scheduler.timesteps)

        if self.policy.changes and kind in CONDITIONAL_FIRST:
            raise ValueError(f"{kind} puts its conditional rows first: not supported")
        timesteps: list[float] = []
        sigmas: list[float] = []
        if not self.policy.plain:
            timesteps, sigmas = noise_levels(self.scheduler, timestep, run.iterations)
        on_cuda = self.device.type == "cuda"
        loop = Loop(run.iterations, self.latents, timesteps, sigmas, self.scheduler, on_cuda)
        self.policy.begins(loop)

        if self.policy.isolated:
            if "SDE" in type(self.scheduler).__name__:
                raise ValueError(f"{type(self.scheduler).__name__} {OWN_NOISE}")
            run.random_state = _random_state(self.device)
        for listener in self.listeners:
            listener.loop_begins(self.calls, run.iterations, self.images)
        self.calls += 1

    def _current_step(self, args: Any, kwargs: Any) -> Step:
        """The step that a call of a network belongs to: the one in progress, or the next one."""
        run = self.run
        if run is None or not self.latents:
            raise RuntimeError(
                "the denoiser ran outside the loop of the pipeline that is observed, "
                "or the pipeline was given latents that it does not prepare"
            )
        if run.step is None:
            if run.index == 0:
                self._begin_loop(run, args[1] if len(args) > 1 else kwargs.get("timestep"))
            if run.index >= run.iterations:
                raise RuntimeError(f"the loop runs on after its {run.iterations} steps")
            run.step = Step(self.calls - 1, run.index)
        return run.step

    def _denoise(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def denoise(*args: Any, **kwargs: Any) -> Any:
            step = self._current_step(args, kwargs)
            rows = len(first_tensor((args, kwargs)))
            step.requested += rows

            asked = self._asked(step, rows)
            evaluate = functools.partial(self._evaluate, original, step)
            if asked:
                call = DenoiserCall(step, asked, self.images, (args, kwargs))
                return answer(call, self.policy, evaluate, sequential=self.sequential)

            # A third evaluation (skip-layer guidance) goes where guidance goes.
            is_guided = self.policy.is_guided(step.index)
            return evaluate(args, kwargs, rows) if is_guided else step.output

        return denoise

    def _asked(self, step: Step, rows: int) -> tuple[Half, ...]:
        """The halves that a call of the denoiser is for; none where both were answered before."""
        if rows not in (self.images, 2 * self.images):
            raise ValueError(
                f"{type(self.pipe).__name__} evaluates {rows} rows for {self.images} latents: "
                "guidance of its own kind (perturbed attention, or an image next to the text), "
                "which cannot be dropped by halves"
            )
        if step.given is not None and not self.policy.plain:
            raise ValueError(
                f"{type(self.pipe).__name__} evaluates its rows a third time, "
                "which its policy has no answer for"
            )
        if rows == 2 * self.images:
            return HALVES
        if step.cond is None:
            return ("cond",)
        return ("uncond",) if step.given is None else ()

    def _evaluate(
        self, original: Callable[..., Any], step: Step, args: Any, kwargs: Any, rows: int
    ) -> Any:
        for listener in self.listeners:
            listener.denoiser_begins(step, rows)
        step.output = original(*args, **kwargs)
        step.rows += rows
        step.forwards += 1
        for listener in self.listeners:
            listener.denoiser_ends(step)
        return step.output

    def _accompany(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A network that feeds the denoiser evaluates no more rows than the denoiser needs."""

        def accompany(*args: Any, **kwargs: Any) -> Any:
            step = self._current_step(args, kwargs)
            rows = len(first_tensor((args, kwargs)))
            if self.policy.evaluated(step.index) == [] and rows == 2 * self.images:
                args, kwargs = halves((args, kwargs), rows)[1]
                return doubled(original(*args, **kwargs))
            return original(*args, **kwargs)

        return accompany

    def _scheduler_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def scheduler_step(*args: Any, **kwargs: Any) -> Any:
            run = self.run
            if run is None or run.step is None:
                raise RuntimeError("a step ran in which the denoiser was not seen")
            step = run.step
            run.step = None

            # Bound by name: CogVideoX's scheduler takes other arguments than most.
            arguments = signature.bind(*args, **kwargs).arguments
            step.timestep = arguments.get("timestep")
            step.sample = arguments.get("sample")
            self._check_guidance(run, step, arguments)

            for listener in self.listeners:
                listener.scheduler_begins(step)
            out = original(*args, **kwargs)
            step.result = first_tensor(out)
            for listener in self.listeners:
                listener.scheduler_ends(step)
            self._end_step(run, step)
            return out

        scheduler_step.sdbench_seam = True  # type: ignore[attr-defined]
        return scheduler_step

    def _check_guidance(self, run: _Run, step: Step, arguments: dict[str, Any]) -> None:
        """Refuse a pipeline without guidance; keep the scale that the first guided step shows."""
        if not self.policy.changes:
            return
        if step.index == 0 and step.requested < 2 * self.images:
            raise ValueError(
                f"{type(self.pipe).__name__} runs without guidance here, so there is none to drop "
                "(guidance_scale of 1 or less, or a model whose guidance is distilled or embedded)"
            )
        # A third evaluation (skip-layer guidance) adds another term: it tells nothing of the rows.
        plainly_guided = step.guided and step.requested == 2 * self.images
        if run.fitted_scale is None and plainly_guided:
            assert step.cond is not None
            assert step.given is not None
            run.fitted_scale = fitted_scale(arguments["model_output"], step.cond, step.given)

    def _end_step(self, run: _Run, step: Step) -> None:
        """Tell of a step that is over, and let go of its tensors."""
        self._name_noise(step)
        for listener in self.listeners:
            listener.step_ends(step)
        step.cond = step.uncond = step.given = step.sample = step.result = step.output = None

        run.index += 1
        if run.index == run.iterations:
            self.latents = ()  # every call prepares its own
            before = run.random_state
            if before is not None and not torch.equal(before, _random_state(self.device)):
                kind = type(self.pipe).__name__
                raise ValueError(f"{kind} with {type(self.scheduler).__name__} {OWN_NOISE}")

    def _check_order(self) -> None:
        """Refuse a pipeline whose conditional rows come first.

        It is checked after the loop, which must not wait for the device.
        """
        if self.run is not None and self.run.fitted_scale is not None:
            require_order(type(self.pipe).__name__, float(self.run.fitted_scale))

    def _name_noise(self, step: Step) -> None:
        assert step.cond is not None
        after = getattr(self.scheduler, "step_index", None)
        index = None if after is None else after - 1
        step.sigma = noise_to_signal(self.scheduler, step.timestep, index, step.cond.device)


def _random_state(device: torch.device) -> UInt8[Tensor, " bytes"]:
    """State of the global generator of a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
