"""The seam: the calls of a stock pipeline where sdbench looks on and a policy decides.

Every guided pipeline calls `scheduler.set_timesteps`, then per iteration the denoiser once
(unconditional and conditional rows concatenated) or twice, and `scheduler.step` once. The seam
wraps those three on the instance, and `prepare_latents` to learn the number of rows. What a
pipeline evaluates next to its denoiser (a ControlNet) is halved with it. Which rows are evaluated
is the policy's to say (`policy.py`).
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from sdbench.models.pipeline import Pipeline, denoisers_of, method_parameters
from sdbench.variants.course import Course
from sdbench.variants.evaluation import DenoiserCall, answer
from sdbench.variants.fitted_scale import fitted_scale
from sdbench.variants.holds import held
from sdbench.variants.hooks import bare_copy, call_replaced, replaced, wrapped
from sdbench.variants.loops import Run, running
from sdbench.variants.noise import noise_to_signal
from sdbench.variants.policy import HALVES, Half, Policy
from sdbench.variants.refusals import require_guidance, require_halves
from sdbench.variants.rows import as_rows, doubled, first_tensor, frames_of, halves
from sdbench.variants.trace import Step

_ENCODING = threading.RLock()


class Seam:
    """The wrappers around one pipeline.

    Args:
        pipe: a guided pipeline.
        policy: decides which rows are evaluated.
        course: of the pipeline's calls.
        sequential: evaluate the two halves of a guided step one after the other.
    """

    def __init__(self, pipe: Pipeline, policy: Policy, course: Course, *, sequential: bool) -> None:
        """Wrap nothing yet."""
        self.pipe = pipe
        self.policy = policy
        self.course = course
        self.sequential = sequential
        self.denoisers = course.denoisers
        self.scheduler = course.scheduler

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap the pipeline's calls for the length of a block.

        Raises:
            ValueError: the pipeline is wrapped already, or does not prepare latents.
        """
        if not hasattr(self.pipe, "prepare_latents"):
            raise ValueError(
                f"{self.course.kind} has no prepare_latents: not a pipeline that makes latents"
            )
        scheduler = self.scheduler
        if not hasattr(scheduler, "step"):
            raise ValueError(
                f"{type(scheduler).__name__} has no step: it takes its steps in a way of its own"
            )

        with ExitStack() as undo:
            undo.enter_context(held(self.pipe, "guidance schedule"))
            for owner, name, wrap in (
                (self.pipe, "encode_prompt", _one_at_a_time),
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
            self.course.turn.is_open = True
            yield

    def _close(self) -> None:
        self.course.turn.end()
        self.course.turn.is_open = False

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
            self.course.latents_prepared(first_tensor(out))
            return out

        return prepare_latents

    def _set_timesteps(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)  # pipelines inspect the signature
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self.course.check_order()
            out = original(*args, **kwargs)
            self.course.timesteps_set()
            return out

        return set_timesteps

    def _progress_bar(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The bar of a loop is closed where the loop ends, also by an exception."""

        @functools.wraps(original)
        def progress_bar(*args: Any, **kwargs: Any) -> Any:
            bar = original(*args, **kwargs)
            run = self.course.run
            handled = sys.exc_info()[1]  # of the caller's, which may be about another call
            if not hasattr(bar, "close"):
                return bar

            def closing() -> None:
                del bar.close  # once: a bar is closed again when it is collected
                bar.close()
                if run is not None and run is self.course.run:
                    self.course.left(run, failed=sys.exc_info()[1] is not handled)

            bar.close = closing
            return bar

        return progress_bar

    def _denoise(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def denoise(*args: Any, **kwargs: Any) -> Any:
            if running() not in (self.course.turn, None):
                return original(*args, **kwargs)  # another pipeline's, which shares the denoiser
            step = self.course.step(_timestep(args, kwargs))
            rows = len(first_tensor((args, kwargs)))
            step.requested += rows

            asked = self._asked(step, rows)
            evaluate = functools.partial(self._evaluate, original, step)
            if asked:
                images, frames = self.course.images, frames_of(self.course.latents)
                call = DenoiserCall(step, asked, images, frames, (args, kwargs))
                return answer(call, self.policy, evaluate, sequential=self.sequential)

            # A third evaluation (skip-layer guidance) goes where guidance goes.
            is_guided = self.policy.is_guided(step.index)
            return evaluate(args, kwargs, rows) if is_guided else step.output

        return denoise

    def _asked(self, step: Step, rows: int) -> tuple[Half, ...]:
        """The halves that a call of the denoiser is for; none where both were answered before."""
        require_halves(self.course.kind, step, self.policy, rows=rows, images=self.course.images)
        if rows == 2 * self.course.images:
            return HALVES
        if step.cond is None:
            return ("cond",)
        return ("uncond",) if step.given is None else ()

    def _evaluate(
        self, original: Callable[..., Any], step: Step, args: Any, kwargs: Any, rows: int
    ) -> Any:
        for listener in self.course.listeners:
            listener.denoiser_begins(step, rows)
        step.output = original(*args, **kwargs)
        step.rows += rows
        step.forwards += 1
        for listener in self.course.listeners:
            listener.denoiser_ends(step)
        return step.output

    def _accompany(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A network that feeds the denoiser evaluates no more rows than the denoiser needs."""

        def accompany(*args: Any, **kwargs: Any) -> Any:
            if running() not in (self.course.turn, None):
                return original(*args, **kwargs)
            step = self.course.step(_timestep(args, kwargs))
            rows = len(first_tensor((args, kwargs)))
            both, frames = 2 * self.course.images, frames_of(self.course.latents)
            if self.policy.evaluated(step.index) == [] and rows in (both, both * frames):
                args, kwargs = halves((args, kwargs), both, frames=frames)[1]
                return doubled(original(*args, **kwargs))
            return original(*args, **kwargs)

        return accompany

    def _scheduler_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        # A scheduler of one's own may hand on what it does not name.
        parameters = method_parameters(type(self.scheduler), "step")
        names = [own.name for own in parameters if own.kind is not own.KEYWORD_ONLY]

        @functools.wraps(original)
        def scheduler_step(*args: Any, **kwargs: Any) -> Any:
            run = self.course.run
            step = None if run is None else run.step
            if run is None or step is None or step.cond is None:
                raise RuntimeError("a step ran in which the denoiser was not seen")
            run.step = None

            # Bound by name: CogVideoX's scheduler takes other arguments than most.
            arguments = dict(zip(names, args, strict=False)) | kwargs
            step.timestep = arguments.get("timestep")
            sample = arguments.get("sample")
            step.sample = None if sample is None else as_rows(sample, step.cond)
            self._check_guidance(run, step, arguments)

            for listener in self.course.listeners:
                listener.scheduler_begins(step)
            out = original(*args, **kwargs)
            step.result = as_rows(first_tensor(out), step.cond)
            for listener in self.course.listeners:
                listener.scheduler_ends(step)
            self._end_step(run, step)
            return out

        return scheduler_step

    def _check_guidance(self, run: Run, step: Step, arguments: dict[str, Any]) -> None:
        """Refuse a pipeline without guidance; keep the scale that the first guided step shows."""
        if not self.policy.changes:
            return
        require_guidance(self.course.kind, step, images=self.course.images)
        # A third evaluation (skip-layer guidance) adds another term: it tells nothing of the rows.
        plainly_guided = step.guided and step.requested == 2 * self.course.images
        if run.fitted_scale is None and plainly_guided:
            assert step.cond is not None
            assert step.given is not None
            guided = as_rows(arguments["model_output"], step.cond)
            run.fitted_scale = fitted_scale(guided, step.cond, step.given)

    def _end_step(self, run: Run, step: Step) -> None:
        """Tell of a step that is over, and let go of its tensors."""
        self._name_noise(step)
        for listener in self.course.listeners:
            listener.step_ends(step)
        step.cond = step.uncond = step.given = step.sample = step.result = step.output = None

        self.course.step_taken(run)

    def _name_noise(self, step: Step) -> None:
        assert step.cond is not None
        after = getattr(self.scheduler, "step_index", None)
        index = after - 1 if after else None
        step.sigma = noise_to_signal(self.scheduler, step.timestep, index, step.cond.device)


def _timestep(args: Any, kwargs: Any) -> Any:
    """What a network gets for the timestep."""
    return args[1] if len(args) > 1 else kwargs.get("timestep")


def _one_at_a_time(original: Callable[..., Any]) -> Callable[..., Any]:
    """A tokenizer keeps the padding of its last call, so threads that share one take turns."""

    @functools.wraps(original)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        with _ENCODING:
            return original(*args, **kwargs)

    return encode_prompt
