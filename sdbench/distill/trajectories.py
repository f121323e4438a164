"""The teacher's own guided trajectories as a source of examples: it needs prompts alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import torch

from sdbench.distill.captions import Captions
from sdbench.distill.examples import Examples, Scales, Teaching, picked_rows
from sdbench.distill.pipeline_call import EnoughSeen, call_pipeline
from sdbench.models.pipeline import Pipeline, denoisers_of
from sdbench.variants.guidance import guided_by
from sdbench.variants.hooks import call_replaced
from sdbench.variants.rows import Layout, first_tensor
from sdbench.variants.schedule import GuidanceSchedule, ScheduleRule
from sdbench.variants.trace import Listener, Step


class Trajectories:
    """The teacher's own guided trajectories, for any guided pipeline.

    They come in rounds. A round is one whole trajectory and others, of other prompts, that end
    after half of its steps, a quarter and so on down to one: guidance changes the noisiest latents
    most, and they decide what an image shows. The rows of a round are shuffled, so that a batch
    holds many noise levels. Of a range of scales a trajectory is guided by one, and each of its
    rows is taught another.

    Args:
        pipe: a guided pipeline.
        captions: draws prompts.
        scales: w, or its range.
        num_steps: of a trajectory.
        rows: prompts of a pipeline call, and rows of a batch.
        seed: of prompts, noise and order; several numbers where several processes share the work.
        arguments: further arguments of the pipeline's call.

    Attributes:
        rule: which of a trajectory's steps are guided.
        passes: how often every row of a round is learnt, each time in another order.
    """

    rule: ScheduleRule = GuidanceSchedule.full
    passes = 1

    def __init__(
        self,
        pipe: Pipeline,
        captions: Captions,
        *,
        scales: Scales,
        num_steps: int,
        rows: int,
        seed: Sequence[int],
        arguments: dict[str, Any] | None = None,
    ) -> None:
        """Run nothing yet."""
        self.pipe = pipe
        self.captions = captions
        self.scales = scales
        self.num_steps = num_steps
        self.rows = rows
        self.seed = tuple(seed)
        self.arguments = arguments
        self._round = -1
        self._steps: list[Examples] = []

    def at(self, step: int, *, teaching: Teaching) -> Examples:
        """The batch of a training step; the teacher runs where it begins a new round."""
        # All rounds are of one length, which only a recorded one tells.
        if not self._steps:
            self._record(0, teaching)
        length = len(self._steps)
        number, visit = divmod(step, self.passes * length)
        if number != self._round:
            self._record(number, teaching)

        again, index = divmod(visit, length)
        order_seed = [*self.seed, number, 1, again] if again else [*self.seed, number, 1]
        order = np.random.default_rng(order_seed).permutation(length * self.rows)
        picked = order[index * self.rows : (index + 1) * self.rows]
        scale = self.scales.rows(np.random.default_rng([*self.seed, number, 2, index]), self.rows)
        return picked_rows(self._steps, [divmod(int(pick), self.rows) for pick in picked], scale)

    def _record(self, number: int, teaching: Teaching) -> None:
        """Run the trajectories of a round: a whole one, half of one (rounded up), a quarter, ..."""
        rng = np.random.default_rng([*self.seed, number, 0])
        self._round = number
        self._steps = self._trajectory(rng, teaching, length=None)
        length = len(self._steps)
        while length > 1:
            length = (length + 1) // 2
            self._steps += self._trajectory(rng, teaching, length=length)

    def _trajectory(
        self, rng: np.random.Generator, teaching: Teaching, *, length: int | None
    ) -> list[Examples]:
        """The steps of one pipeline call, which ends after `length` of them."""
        # The order of the draws is part of what a seed means.
        prompts = list(self.captions(rng, self.rows))
        seeds = rng.integers(2**62, size=self.rows)
        scale = self.scales.trajectory(rng)
        noise = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]

        recorder = self._recorder(length)
        with suppress(EnoughSeen), ExitStack() as undo:
            undo.enter_context(teaching())
            for denoiser in denoisers_of(self.pipe):
                undo.enter_context(call_replaced(denoiser, recorder.recording))
            undo.enter_context(guided_by(self.pipe, self.rule, listeners=[recorder]))
            self._call(prompts, noise, scale)
        return recorder.steps

    def _recorder(self, length: int | None) -> Recorder:
        """What keeps the steps of the next trajectory."""
        return _Predictions(length)

    def _call(self, prompts: list[str], noise: list[torch.Generator], scale: float) -> None:
        call_pipeline(
            self.pipe,
            prompts,
            noise,
            guidance_scale=scale,
            num_steps=self.num_steps,
            output_type="latent",
            arguments=self.arguments,
        )


class Recorder(Listener, ABC):
    """Keeps what the denoiser gets in every step of a trajectory, and what is to be learnt of it.

    Args:
        length: steps after which the pipeline's call is ended; None for the call's own.
    """

    def __init__(self, length: int | None) -> None:
        self.steps: list[Examples] = []
        self.length = length

    @abstractmethod
    def recording(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the denoiser's call beneath the seam."""


class _Predictions(Recorder):
    """Keeps the two predictions that the denoiser makes in every step."""

    def __init__(self, length: int | None) -> None:
        super().__init__(length)
        self._calls: list[tuple[Any, Any]] = []

    def recording(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the denoiser's call beneath the seam, so that only what is evaluated is seen."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if len(self.steps) == self.length:
                raise EnoughSeen
            self._calls.append((args, kwargs))
            return original(*args, **kwargs)

        return call

    def step_ends(self, step: Step) -> None:
        """Keep the conditional rows: the second half of one call, or the first of two calls."""
        if step.cond is None or step.uncond is None:
            raise ValueError(
                f"the pipeline itself leaves step {step.index} unguided: "
                "there is nothing to learn there"
            )
        assert step.sample is not None
        assert step.sigma is not None

        rows = len(step.sample)
        first_call = self._calls[0]
        self._calls = []
        concatenated = len(first_tensor(first_call)) == 2 * rows
        args, kwargs = Layout(2 * rows).halves(first_call)[1] if concatenated else first_call

        # Learned variances follow the prediction.
        channels = step.sample.shape[1]
        cond = step.cond.narrow(1, 0, channels)
        uncond = step.uncond.narrow(1, 0, channels)

        # What a row is taught is drawn later, when it is picked.
        sigma = step.sigma.expand(rows)
        no_scale = torch.full_like(sigma, torch.nan)
        self.steps.append(Examples(args, kwargs, cond, uncond, sigma, no_scale))
