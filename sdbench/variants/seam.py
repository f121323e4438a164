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
from typing import Any

import torch
from torch import nn

from sdbench.models.pipeline import Pipeline, denoisers_of
from sdbench.variants.evaluation import DenoiserCall, answer
from sdbench.variants.fitted_scale import fitted_scale, require_order
from sdbench.variants.holds import held
from sdbench.variants.hooks import bare_copy, call_replaced, replaced, wrapped
from sdbench.variants.loops import Run, Turn, random_state, running
from sdbench.variants.noise import noise_levels, noise_to_signal
from sdbench.variants.policy import HALVES, Half, Loop, Policy
from sdbench.variants.refusals import (
    require_guidance,
    require_halves,
    require_no_noise_drawn,
    require_own_noise,
    require_unconditional_first,
)
from sdbench.variants.rows import doubled, first_tensor, halves
from sdbench.variants.trace import Listener, Step


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
        self.kind = type(pipe).__name__
        self.policy = policy
        self.listeners = list(listeners)
        self.sequential = sequential
        self.denoisers = denoisers_of(pipe)
        self.scheduler: Any = pipe.scheduler
        # Shape and device of the latents that the call in progress prepared.
        self.latents: tuple[int, ...] = ()
        self.device = torch.device("cpu")
        self.calls = 0
        self.run: Run | None = None
        self.turn = Turn()

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
        if not hasattr(self.pipe, "prepare_latents"):
            raise ValueError(
                f"{self.kind} has no prepare_latents: not a pipeline that makes latents"
            )

        scheduler = self.scheduler
        with ExitStack() as undo:
            undo.enter_context(held(self.pipe, "guidance schedule"))
            for owner, name, wrap in (
                (self.pipe, "prepare_latents", self._prepare_latents),
                (self.pipe, "progress_bar", self._progress_bar),
                (scheduler, "set_timesteps", self._set_timesteps),
                (scheduler, "step", self._scheduler_step),
            ):
                if hasattr(owner, name):
                    undo.enter_context(wrapped(owner, name, wrap))

            # A pipeline may copy its scheduler; the copy must not act on the original.
            copying = functools.partial(bare_copy, scheduler)
            undo.enter_context(replaced(scheduler, "__deepcopy__", copying))

            for denoiser in self.denoisers:
                undo.enter_context(call_replaced(denoiser, self._denoise))
            if isinstance(controlnet := getattr(self.pipe, "controlnet", None), nn.Module):
                undo.enter_context(call_replaced(controlnet, self._accompany))

            undo.callback(self._close)
            self.turn.is_open = True
            yield

    def _close(self) -> None:
        self.turn.end()
        self.turn.is_open = False

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
            self.turn.begin()
            return out

        return prepare_latents

    def _set_timesteps(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)  # pipelines inspect the signature
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self._check_order()
            out = original(*args, **kwargs)
            self.run = Run()
            self.turn.begin()
            return out

        return set_timesteps

    def _progress_bar(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The bar of a loop is closed where the loop ends, also by an exception."""

        @functools.wraps(original)
        def progress_bar(*args: Any, **kwargs: Any) -> Any:
            bar = original(*args, **kwargs)
            run = self.run
            if not hasattr(bar, "close"):
                return bar

            def closing() -> None:
                del bar.close  # once: a bar is closed again when it is collected
                bar.close()
                if run is not None and run is self.run:
                    self._end_loop(run)

            bar.close = closing
            return bar

        return progress_bar

    def _begin_loop(self, run: Run, timestep: Any) -> None:
        """Settle the loop's length, which is known only now, and tell the policy of it."""
        # Image-to-image and `denoising_end` shorten the loop after `set_timesteps`.
        shortened = getattr(self.pipe, "_num_timesteps", None)
        run.iterations = shortened or len(self.scheduler.timesteps)

        require_unconditional_first(self.kind, self.policy)
        timesteps: list[float] = []
        sigmas: list[float] = []
        if not self.policy.plain:
            timesteps, sigmas = noise_levels(self.scheduler, timestep, run.iterations)
        on_cuda = self.device.type == "cuda"
        loop = Loop(run.iterations, self.latents, timesteps, sigmas, self.scheduler, on_cuda)
        self.policy.begins(loop)

        if self.policy.isolated:
            require_own_noise(self.scheduler)
            run.random_state = random_state(self.device)
        for listener in self.listeners:
            listener.loop_begins(self.calls, run.iterations, self.images)
        self.calls += 1

    def _current_step(self, args: Any, kwargs: Any) -> Step:
        """The step that a call of a network belongs to: the one in progress, or the next one."""
        run = self.run
        if running() is None or run is None or not self.latents:
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
            if running() not in (self.turn, None):
                return original(*args, **kwargs)  # another pipeline's, which shares the denoiser
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
        require_halves(self.kind, step, self.policy, rows=rows, images=self.images)
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
            if running() not in (self.turn, None):
                return original(*args, **kwargs)
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

        return scheduler_step

    def _check_guidance(self, run: Run, step: Step, arguments: dict[str, Any]) -> None:
        """Refuse a pipeline without guidance; keep the scale that the first guided step shows."""
        if not self.policy.changes:
            return
        require_guidance(self.kind, step, images=self.images)
        # A third evaluation (skip-layer guidance) adds another term: it tells nothing of the rows.
        plainly_guided = step.guided and step.requested == 2 * self.images
        if run.fitted_scale is None and plainly_guided:
            assert step.cond is not None
            assert step.given is not None
            run.fitted_scale = fitted_scale(arguments["model_output"], step.cond, step.given)

    def _end_step(self, run: Run, step: Step) -> None:
        """Tell of a step that is over, and let go of its tensors."""
        self._name_noise(step)
        for listener in self.listeners:
            listener.step_ends(step)
        step.cond = step.uncond = step.given = step.sample = step.result = step.output = None

        run.index += 1
        if run.index == run.iterations:
            self._end_loop(run)
            require_no_noise_drawn(self.kind, self.scheduler, run, self.device)

    def _end_loop(self, run: Run) -> None:
        """No call of a network belongs to this loop any more."""
        if not run.is_over:
            run.is_over = True
            self.latents = ()  # every call prepares its own
            self.turn.end()

    def _check_order(self) -> None:
        """Refuse a pipeline whose conditional rows come first.

        It is checked after the loop, which must not wait for the device.
        """
        if self.run is not None and self.run.fitted_scale is not None:
            require_order(self.kind, float(self.run.fitted_scale))

    def _name_noise(self, step: Step) -> None:
        assert step.cond is not None
        after = getattr(self.scheduler, "step_index", None)
        index = None if after is None else after - 1
        step.sigma = noise_to_signal(self.scheduler, step.timestep, index, step.cond.device)
