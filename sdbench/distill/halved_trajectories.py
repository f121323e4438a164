"""Trajectories of half as many steps as the teacher takes, as a source of examples.

The pipeline's own loop runs with the student's number of steps. In each of them the teacher takes
two. The loop gets the prediction with which its one step ends where these two do: so it goes
through the teacher's latents, at exactly the timesteps at which the student will be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.distill.captions import Captions
from sdbench.distill.examples import Examples, Scales
from sdbench.distill.halving import ddim_step, joining, level, require_halvable
from sdbench.distill.loss import guided_prediction
from sdbench.distill.pipeline_call import EnoughSeen, with_inputs
from sdbench.distill.trajectories import Recorder, Trajectories
from sdbench.models.pipeline import Pipeline
from sdbench.variants.rows import Layout, first_tensor, map_tensors
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Step


class HalvedTrajectories(Trajectories):
    """The teacher's trajectories, two of whose steps are one to learn.

    Args:
        pipe: a pipeline with a DDIM scheduler, in which the teacher needs no guidance.
        captions: draws prompts.
        guidance_scale: w that the pipeline is asked for; all of its steps are unguided.
        num_steps: of the student, half of the teacher's.
        rows: prompts of a pipeline call, and rows of a batch.
        seed: as `Trajectories` takes it.
        arguments: further arguments of the pipeline's call.

    Raises:
        ValueError: the scheduler's steps are not DDIM's own.

    Source: Meng et al. 2023, arXiv 2210.03142, section 3.2.
    """

    passes = 3  # the teacher's passes of a row cost as much as what the student's do

    def __init__(
        self,
        pipe: Pipeline,
        captions: Captions,
        *,
        guidance_scale: float,
        num_steps: int,
        rows: int,
        seed: Sequence[int],
        is_guided: bool = False,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        """Run nothing yet."""
        require_halvable(pipe.scheduler)
        self.guided_at = guidance_scale if is_guided else None
        self.rule = GuidanceSchedule.full if is_guided else GuidanceSchedule.none
        super().__init__(
            pipe,
            captions,
            scales=Scales(guidance_scale, guidance_scale),
            num_steps=num_steps,
            rows=rows,
            seed=seed,
            arguments=arguments,
        )

    def _recorder(self, length: int | None) -> Recorder:
        return _TwoSteps(self.pipe.scheduler, self.num_steps, length, self.guided_at)


class _TwoSteps(Recorder):
    """Answers the denoiser's calls for the student, and keeps what it is to learn.

    Args:
        scheduler: of the pipeline, which is about to take the student's number of steps.
        num_steps: of the student.
        length: steps after which the pipeline's call is ended; None for the call's own.
        guided_at: w, where the teacher is guided.
    """

    def __init__(
        self, scheduler: Any, num_steps: int, length: int | None, guided_at: float | None
    ) -> None:
        super().__init__(length)
        self.guided_at = guided_at
        self.scheduler = scheduler
        self._call: Any = None
        self.kind: str = scheduler.config["prediction_type"]
        self.width = scheduler.config["num_train_timesteps"] // num_steps

    def recording(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the denoiser's call beneath the seam; the teacher's is the original."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if len(self.steps) == self.length:
                raise EnoughSeen
            self._call = (args, kwargs)
            return self._answered(original, len(self.steps))

        return call

    def step_ends(self, step: Step) -> None:
        """Keep the conditional rows, and the prediction that the loop got for them."""
        assert step.cond is not None
        assert step.sigma is not None
        rows = len(step.cond)
        concatenated = len(first_tensor(self._call)) == 2 * rows
        args, kwargs = Layout(2 * rows).halves(self._call)[1] if concatenated else self._call

        # Guidance leaves two alike predictions as they are, whatever w.
        uncond = step.cond if step.uncond is None else step.uncond
        sigma = step.sigma.expand(rows)
        no_scale = torch.full_like(sigma, torch.nan)
        self.steps.append(Examples(args, kwargs, step.cond, uncond, sigma, no_scale))

    def _answered(self, teacher: Callable[..., Any], index: int) -> Any:
        """The output that stands for two steps of the teacher.

        Where the step ends is the scheduler's own rule. Its list of timesteps is another one where
        the number of steps does not divide that of training.
        """
        args, kwargs = self._call
        output = teacher(*args, **kwargs)
        begin = int(self.scheduler.timesteps[index])
        between = begin - self.width // 2
        if between < 0:  # a last step that the teacher takes at once, too
            return output

        at, mid = level(self.scheduler, begin), level(self.scheduler, between)
        to = level(self.scheduler, begin - self.width)
        z = first_tensor(self._call)
        z_mid = ddim_step(self.kind, self._prediction(output), z, at, mid)

        args, kwargs = with_inputs(self._call, z_mid, between / begin)
        second = self._prediction(teacher(*args, **kwargs))
        end = ddim_step(self.kind, second, z_mid, mid, to)
        joined = joining(self.kind, z, at, end, to)
        answered = first_tensor(output)
        return map_tensors(output, lambda own: joined if own is answered else own)

    def _prediction(self, output: Any) -> Float[Tensor, "rows ..."]:
        """The teacher's prediction; a guided one is that of both halves."""
        prediction = first_tensor(output)
        if self.guided_at is None:
            return prediction
        uncond, cond = prediction.chunk(2)
        return guided_prediction(cond, uncond, self.guided_at).repeat(2, 1, 1, 1)
