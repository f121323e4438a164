"""The seam: the calls of a stock pipeline where sdbench looks on and a policy decides.

Every guided pipeline calls `scheduler.set_timesteps`, then per iteration the denoiser once (the
rows of both halves concatenated) or twice, and `scheduler.step` once. The seam wraps those three on
the instance, and `prepare_latents` to learn the number of rows. What a pipeline evaluates next to
its denoiser (a ControlNet) is halved with it. Which half is which is told in `telling.py`; which
rows are evaluated is the policy's to say (`policy.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from sdbench.models.modular import loops_of
from sdbench.models.pipeline import (
    Pipeline,
    Scheduler,
    denoisers_of,
    method_parameters,
    schedulers_of,
)
from sdbench.variants.course import Course
from sdbench.variants.evaluation import (
    DenoiserCall,
    Evaluate,
    answer,
    timestep_of,
    with_output,
)
from sdbench.variants.holds import held
from sdbench.variants.hooks import bare_copy, call_replaced, replaced, wrapped
from sdbench.variants.loops import Run, running
from sdbench.variants.noise import noise_to_signal
from sdbench.variants.policy import Policy
from sdbench.variants.reading import read
from sdbench.variants.refusals import require_halves
from sdbench.variants.rows import Layout, as_rows, doubled, first_tensor, samples
from sdbench.variants.telling import Telling
from sdbench.variants.trace import Step


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
        self.schedulers = course.schedulers
        self.telling = Telling(course, policy)
        self._copies: list[weakref.ref[Any]] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap the pipeline's calls for the length of a block.

        Raises:
            ValueError: the pipeline is wrapped already, or its scheduler takes no steps.
        """
        with ExitStack() as undo:
            undo.enter_context(held(self.pipe, "guidance schedule"))
            for owner, name, wrap in (
                (self.pipe, "encode_prompt", self.telling.texts.encoding),
                (self.pipe, "prepare_latents", self._prepare_latents),
                *((loop, "progress_bar", self._progress_bar) for loop in loops_of(self.pipe)),
            ):
                if hasattr(owner, name):
                    undo.enter_context(wrapped(owner, name, wrap))
            for loop, scheduler in enumerate(self.schedulers):
                undo.enter_context(self._scheduled(loop, scheduler))

            for denoiser in self.denoisers:
                undo.enter_context(call_replaced(denoiser, self._denoise))
            if isinstance(controlnet := getattr(self.pipe, "controlnet", None), nn.Module):
                undo.enter_context(call_replaced(controlnet, self._accompany))

            undo.callback(self._close)
            self.course.turn.is_open = True
            yield

    @contextmanager
    def _scheduled(self, loop: int, scheduler: Scheduler) -> Iterator[None]:
        """Wrap the calls of a loop's scheduler for the length of a block."""
        if not hasattr(scheduler, "step"):
            raise ValueError(
                f"{type(scheduler).__name__} has no step: it takes its steps in a way of its own"
            )
        set_timesteps = functools.partial(self._set_timesteps, loop)
        step = functools.partial(self._scheduler_step, type(scheduler))

        # A pipeline may copy its scheduler; the copy must not act on the original.
        def copying(memo: dict[int, Any]) -> Any:  # a copy of a function is the function
            return self._copied(scheduler, memo)

        with ExitStack() as undo:
            if hasattr(scheduler, "set_timesteps"):
                undo.enter_context(wrapped(scheduler, "set_timesteps", set_timesteps))
            undo.enter_context(wrapped(scheduler, "step", step))
            undo.enter_context(replaced(scheduler, "__deepcopy__", copying))
            yield

    def finish(self) -> None:
        """Nothing has failed that was not caught, and no call follows.

        Raises:
            ValueError: the last loop contradicted what was known of the halves.
        """
        self.telling.loop_over()
        self.course.finish()

    def _close(self) -> None:
        self.course.turn.end()
        self.course.turn.is_open = False
        for copied in filter(None, (reference() for reference in self._copies)):
            vars(copied).pop("step", None)

    def _prepare_latents(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            if (
                schedulers_of(self.pipe) != self.schedulers
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

    def _set_timesteps(self, loop: int, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)  # pipelines inspect the signature
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self.telling.loop_over()
            out = original(*args, **kwargs)
            self.course.timesteps_set(loop)
            return out

        return set_timesteps

    def _progress_bar(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The bar of a loop is closed where the loop ends, also by an exception."""

        @functools.wraps(original)
        def progress_bar(*args: Any, **kwargs: Any) -> Any:
            bar = original(*args, **kwargs)
            if self.course.may_go_on:
                self.telling.loop_over()
                self.course.bar_opened()
            run = self.course.run
            if run is not None:
                self.course.bar_told(run, args[0] if args else None, kwargs.get("total"))
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

    def _copied(self, scheduler: Any, memo: dict[int, Any]) -> Any:
        """A copy of the scheduler: it has no wrapper but one, as a loop may step copies alone."""
        copied = bare_copy(scheduler, memo)
        stepped = self._scheduler_step(type(scheduler), copied.step)
        plain = copied.step

        @functools.wraps(plain)
        def step(*args: Any, **kwargs: Any) -> Any:
            run = self.course.run
            waits = running() is self.course.turn and run is not None and run.step is not None
            return (stepped if waits else plain)(*args, **kwargs)

        copied.step = step
        self._copies.append(weakref.ref(copied))
        return copied

    def _denoise(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def denoise(*args: Any, **kwargs: Any) -> Any:
            if running() not in (self.course.turn, None):
                return original(*args, **kwargs)  # another pipeline's, which shares the denoiser
            if self.course.is_between_loops:
                return self._between(original, args, kwargs)
            step, layout = self._step_of(args, kwargs)
            step.requested += layout.rows
            run = self.course.run
            assert run is not None
            if run.is_further:
                self.telling.refuse_halves("runs further loops over the timesteps of its first one")
            self.telling.reread(run, step, layout)
            images = self.course.images
            require_halves(self.course.kind, step, self.policy, rows=layout.rows, images=images)

            asked = self.telling.asked(run, step, layout, (args, kwargs))
            if step.latents is None:
                step.latents = samples((args, kwargs), self.course.latents)
            elif len(asked) == 1:
                self.telling.look_at_second(step, args, kwargs)
            evaluate: Evaluate = functools.partial(self._evaluate, original, step)
            if not asked:  # a third evaluation (skip-layer guidance) goes where guidance goes
                self.telling.look_at_third(step, args, kwargs)
                is_guided = self.policy.is_guided(step.index)
                return evaluate(args, kwargs, layout.rows) if is_guided else step.output

            policy = self.telling.deciding(run, step)
            call = DenoiserCall(step, asked, images, layout, (args, kwargs))
            if self._splits(call):
                call, evaluate = read(call, self.telling.form, evaluate, kind=self.course.kind)
            return answer(call, policy, evaluate, sequential=self.sequential)

        return denoise

    def _between(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """An evaluation that no step needs, as of a video's last chunk for the next one."""
        assert self.course.run is not None
        self.course.run.is_left = True
        return original(*args, **kwargs)

    def _step_of(self, args: Any, kwargs: Any) -> tuple[Step, Layout]:
        """The step that a call of a network is part of, and the layout of its rows."""
        arguments = args, kwargs
        self.course.latents_seen(arguments, self.telling.form)
        step = self.course.step(timestep_of(args, kwargs))
        return step, Layout.of(arguments, self.course.latents)

    def _splits(self, call: DenoiserCall) -> bool:
        """Whether rows may be picked from calls like this one, which is for both halves."""
        return len(call.asked) == 2 and (self.sequential or self.policy.changes)

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
            if running() not in (self.course.turn, None) or self.course.is_between_loops:
                return original(*args, **kwargs)
            step, layout = self._step_of(args, kwargs)
            run, both = self.course.run, 2 * self.course.images
            is_dropped = self.policy.changes and self.policy.evaluated(step.index) == []
            if not is_dropped or layout.rows not in (both, both * layout.frames):
                return original(*args, **kwargs)
            assert run is not None
            layout = dataclasses.replace(layout, rows=both)
            order = self.telling.order(run, layout, (args, kwargs))
            if not run.is_told:
                return original(*args, **kwargs)
            args, kwargs = layout.halves((args, kwargs))[order.index("cond")]
            return doubled(original(*args, **kwargs))

        return accompany

    def _scheduler_step(self, kind: type, original: Callable[..., Any]) -> Callable[..., Any]:
        # A scheduler of one's own may hand on what it does not name.
        parameters = method_parameters(kind, "step")
        names = [own.name for own in parameters if own.kind is not own.KEYWORD_ONLY]

        @functools.wraps(original)
        def scheduler_step(*args: Any, **kwargs: Any) -> Any:
            run = self.course.run
            step = None if run is None else run.step
            if step is None and run is not None and run.index > 0 and not run.is_left:
                return original(*args, **kwargs)  # a further one of the same iteration
            if run is None or step is None or step.cond is None:
                raise RuntimeError(
                    "a step ran in which the denoiser was not seen, or after the loop's end"
                )
            run.step = None

            # Bound by name: CogVideoX's scheduler takes other arguments than most.
            arguments = dict(zip(names, args, strict=False)) | kwargs
            step.timestep = arguments.get("timestep")
            sample = arguments.get("sample")
            step.sample = None if sample is None else as_rows(sample, step.cond)
            instead = self.telling.settle(run, step, arguments)
            if instead is not None:
                args, kwargs = with_output(instead, args, kwargs)

            for listener in self.course.listeners:
                listener.scheduler_begins(step)
            out = original(*args, **kwargs)
            step.result = as_rows(first_tensor(out), step.cond)
            for listener in self.course.listeners:
                listener.scheduler_ends(step)
            self._end_step(run, step)
            return out

        return scheduler_step

    def _end_step(self, run: Run, step: Step) -> None:
        """Tell of a step that is over, and let go of its tensors."""
        self._name_noise(step)
        for listener in self.course.listeners:
            listener.step_ends(step)
        step.cond = step.uncond = step.given = step.sample = step.result = None
        step.output = step.latents = None

        self.course.step_taken(run)
        if run.is_over:
            self.telling.texts.begin()

    def _name_noise(self, step: Step) -> None:
        assert step.cond is not None
        scheduler = self.course.scheduler
        after = getattr(scheduler, "step_index", None)
        index = after - 1 if after else None
        step.sigma = noise_to_signal(scheduler, step.timestep, index, step.cond.device)
