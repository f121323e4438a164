"""The course of a pipeline's calls: where each loop begins, which step it is at, where it ends.

What is done within a step is in `seam.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sdbench.models.pipeline import Pipeline, denoisers_of, schedulers_of
from sdbench.variants.forms import Form
from sdbench.variants.loops import Run, Turn, random_state, running
from sdbench.variants.noise import first_step, noise_levels
from sdbench.variants.policy import Loop, Policy
from sdbench.variants.refusals import (
    refuse_windows,
    require_no_noise_drawn,
    require_own_noise,
    require_sigmas,
    require_terminal_noise,
)
from sdbench.variants.rows import is_twice, samples, tensors
from sdbench.variants.trace import Listener, Step, Trace


class Course:
    """The loops of one pipeline, one after another.

    Args:
        pipe: a guided pipeline.
        policy: is told where a loop begins.
        trace: keeps what ran.
        listeners: get every event, in order, after the trace and the policy.

    Attributes:
        schedulers: one for each of the loops of a call.
        loop: which of them the call is at.
        guided: of every loop of the call so far, whether it was guided.
        latents: shape of the latents that the call in progress prepared.
        is_inferred: whether only the arguments of a network told it.
        run: the loop in progress, or the last one.
        turn: when the pipeline is the one whose loop runs in this thread.
        broken_off: the calls whose loop ended early, and not because somebody asked for that. A
            call that failed is among them if no other one followed: its caller knows of it.
    """

    def __init__(
        self, pipe: Pipeline, policy: Policy, trace: Trace, listeners: Sequence[Listener]
    ) -> None:
        """Nothing runs yet."""
        self.pipe = pipe
        self.kind = type(pipe).__name__
        self.denoisers = denoisers_of(pipe)
        self.schedulers = schedulers_of(pipe)
        self.loop = 0
        self.guided: dict[int, bool] = {}
        self.policy = policy
        self.trace = trace
        self.listeners = [trace, policy, *listeners]
        self.latents: tuple[int, ...] = ()
        self.is_inferred = False
        self.device = torch.device("cpu")
        self.run: Run | None = None
        self.turn = Turn()
        self.broken_off: list[str] = []

    @property
    def scheduler(self) -> Any:
        """Of the loop in progress."""
        return self.schedulers[self.loop]

    @property
    def images(self) -> int:
        """Rows of the latents in progress; 0 where there are none yet."""
        return self.latents[0] if self.latents else 0

    def latents_prepared(self, latents: Float[Tensor, "images ..."]) -> None:
        """The pipeline has made the latents of a call."""
        self.latents, self.is_inferred = tuple(latents.shape), False
        self.device = latents.device
        self.turn.begin()

    def latents_seen(self, arguments: Any, form: Form) -> None:
        """Take the latents from a call of a network, where the pipeline has prepared no such ones.

        Args:
            arguments: args and kwargs of the call.
            form: what is known of the pipeline: a call with both halves has its latents twice.
        """
        if self.run is None or self.run.is_over:
            return
        given = samples(arguments, self.latents)
        rows = len(given)
        if self.latents and rows % self.images == 0:
            return
        shape = given.shape if isinstance(given, Tensor) else (len(given), *given[0].shape)
        is_double = set(form.orders) != {False} and is_twice(given)
        self.latents, self.is_inferred = (rows // 2 if is_double else rows, *shape[1:]), True
        self.device = next(tensors(given)).device

    def bar_opened(self) -> None:
        """A progress bar begins after a loop: if a network follows, it is of a further one."""
        self.run = Run(is_further=True)
        self.turn.begin()

    def bar_told(self, run: Run, iterable: Any, total: int | None) -> None:
        """A progress bar says how long a loop is.

        Some of the scheduler's timesteps are surely what the loop runs over. Other things may be
        the chunks of a video.
        """
        run.iterable = len(iterable) if hasattr(iterable, "__len__") else 0
        run.total = total or 0
        if isinstance(iterable, Tensor) and _is_part_of(iterable, self.scheduler.timesteps):
            run.listed = len(iterable)

    @property
    def may_go_on(self) -> bool:
        """Whether a loop is over, and nothing is left to tell of it."""
        return self.run is not None and self.run.is_over and not self.run.is_broken

    @property
    def is_between_loops(self) -> bool:
        """Whether a loop has run to its end, and no other has begun."""
        run = self.run
        return run is not None and run.is_over and 0 < run.iterations <= run.index

    def timesteps_set(self, loop: int) -> None:
        """The scheduler of a loop is ready."""
        if self.run is not None:
            self._end(self.run, failed=True)  # where nothing told when it was left
        if loop in self.guided:  # it has run, so this is another call
            self.guided = {}
        self.guided[loop] = False
        self.loop, self.run = loop, Run()
        self.turn.begin()

    def step(self, timestep: Any) -> Step:
        """The step that a call of a network belongs to: the one in progress, or the next one.

        Args:
            timestep: that the network gets.

        Raises:
            RuntimeError: no loop is in progress.
        """
        run = self.run
        if running() is None or run is None or not self.latents:
            raise RuntimeError(
                "the denoiser ran outside the loop of the pipeline that is observed, "
                "or the pipeline was given latents that it does not prepare, or another pipeline "
                "shares the denoiser (observe it, too: guided_by(other, None))"
            )
        if run.step is None:
            if run.index and isinstance(timestep, Tensor) and timestep is run.timestep:
                refuse_windows(self.kind)
            run.timestep = timestep
            if run.index == 0:
                self._begin(run, timestep)
            if run.index >= run.iterations:
                raise RuntimeError(f"the loop runs on after its {run.iterations} steps")
            run.step = Step(self.trace.loops - 1, run.index)
        return run.step

    def _begin(self, run: Run, timestep: Any) -> None:
        """Settle the loop's length, which is known only now, and tell the policy of it."""
        require_terminal_noise(self.scheduler)
        run.iterations = self._length(run, timestep)
        timesteps: list[float] = []
        sigmas: list[float] = []
        if not self.policy.plain:
            timesteps, sigmas = noise_levels(self.scheduler, timestep, run.iterations)
            require_sigmas(self.scheduler, self.policy, sigmas)
        on_cuda = self.device.type == "cuda"
        loop = Loop(
            run.iterations,
            self.latents,
            timesteps,
            sigmas,
            self.scheduler,
            on_cuda,
            self._high_steps(run, timestep),
        )
        self.policy.begins(loop)

        if self.policy.isolated:
            require_own_noise(self.scheduler)
            run.random_state = random_state(self.device)
        self._tell_of(run, self.listeners)

    def _high_steps(self, run: Run, timestep: Any) -> int | None:
        """Steps of the first of two denoisers, which are those before a boundary."""
        config = getattr(self.pipe, "config", {})
        boundary = config.get("boundary_ratio") if len(self.denoisers) > 1 else None
        if boundary is None:
            return None
        timesteps, _ = noise_levels(self.scheduler, timestep, run.iterations)
        last = boundary * self.scheduler.config.num_train_timesteps
        return sum(own >= last for own in timesteps)

    def _length(self, run: Run, timestep: Any) -> int:
        # Image-to-image and `denoising_end` shorten the loop after `set_timesteps`.
        told = run.listed or getattr(self.pipe, "_num_timesteps", None) or run.iterable
        listed = len(self.scheduler.timesteps)
        if not told and getattr(self.scheduler, "order", 1) == 1 and 0 < run.total < listed:
            # It counts a timestep once that is listed twice (PNDM), or by a higher order.
            distinct = len(set(torch.as_tensor(self.scheduler.timesteps).tolist()))
            told = run.total if run.total != distinct else 0
        if not told:
            return listed - first_step(self.scheduler, timestep)
        return min(told, listed)  # of a video in chunks, the number may be that of all of them

    def _tell_of(self, run: Run, listeners: Sequence[Listener]) -> None:
        run.is_known = True
        call = self.trace.loops
        for listener in listeners:
            listener.loop_begins(call, run.iterations, self.images)

    def step_taken(self, run: Run) -> None:
        """A step of a loop is over."""
        run.index += 1
        if run.index == run.iterations:
            self.left(run)
            require_no_noise_drawn(self.kind, self.scheduler, run, self.device)

    def left(self, run: Run, *, failed: bool = False) -> None:
        """The pipeline has left its loop, by an exception where it failed."""
        self._end(run, failed=failed)
        if not run.is_known and self.latents:  # it was refused or left before its first step
            run.iterations = self._length(run, None)
            self._tell_of(run, [self.trace])
        self.latents = ()  # every call prepares its own

    def _end(self, run: Run, *, failed: bool) -> None:
        """No call of a network belongs to this loop any more."""
        if run.is_over:
            return
        run.is_over = True
        self.turn.end()

        was_asked_for = any(getattr(self.pipe, name, False) for name in ("interrupt", "_interrupt"))
        run.is_broken = run.is_known and run.index < run.iterations and not was_asked_for
        if run.is_broken and not failed:
            self._note(run)

    def _note(self, run: Run) -> None:
        steps = f"{run.index} of {run.iterations} steps"
        self.broken_off.append(f"call {self.trace.loops - 1} ended after {steps}")
        run.is_broken = False

    def finish(self) -> None:
        """Nothing has failed that was not caught, and no call follows."""
        if self.run is not None:
            self._end(self.run, failed=True)
            if self.run.is_broken:
                self._note(self.run)


def _is_part_of(some: Shaped[Tensor, " some"], timesteps: Any) -> bool:
    """Whether timesteps are a view of all of them: nothing has to be read from a device."""
    if not isinstance(timesteps, Tensor):
        return False
    return some.untyped_storage().data_ptr() == timesteps.untyped_storage().data_ptr()
