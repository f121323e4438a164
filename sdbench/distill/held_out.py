"""How good a student is on held-out prompts: its loss, and its images next to the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.distill.captions import Captions
from sdbench.distill.examples import Examples, Teaching
from sdbench.distill.halved_trajectories import HalvedTrajectories
from sdbench.distill.pipeline_call import call_pipeline, output_as_given
from sdbench.distill.settings import Settings
from sdbench.distill.student import Student
from sdbench.distill.trajectories import Trajectories
from sdbench.instruments.quality import score
from sdbench.models.pipeline import Pipeline
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule

HELD_OUT_BATCHES = 4


def trajectories(
    pipe: Pipeline, captions: Captions, settings: Settings, *, rows: int, seed: Sequence[int]
) -> Trajectories:
    """The trajectories of a run's stage: the guided teacher's, or those of two steps as one.

    Args:
        pipe: the teacher's.
        captions: draws prompts.
        settings: of the run.
        rows: of a batch.
        seed: as `Trajectories` takes it.
    """
    steps = settings.num_steps
    if settings.halves_steps:
        return HalvedTrajectories(
            pipe,
            captions,
            guidance_scale=settings.guidance_scale,
            is_guided=settings.has_guided_teacher,
            num_steps=steps,
            rows=rows,
            seed=seed,
        )
    return Trajectories(
        pipe, captions, scales=settings.scales, num_steps=steps, rows=rows, seed=seed
    )


class Evaluation:
    """Measures a student on held-out prompts: its loss, and its images' distance to the teacher's.

    Args:
        student: what is measured.
        teaching: makes a block in which the pipeline is the teacher's.
        settings: of the run.
        prompts: held-out ones.
        with_images: also generate images; without, the loss alone is measured.
    """

    def __init__(
        self,
        student: Student,
        teaching: Teaching,
        settings: Settings,
        prompts: Sequence[str],
        *,
        with_images: bool,
    ) -> None:
        self.student = student
        self.teaching = teaching
        self.settings = settings
        self.prompts = list(prompts)
        self.with_images = with_images
        self._examples: list[Examples] = []
        self._reference: Float[Tensor, "n channels height width"] | None = None

    def row(self, loss: Callable[[Examples], Float[Tensor, ""]]) -> dict[str, float]:
        """The columns of the curve that this measures.

        Args:
            loss: of the student on a batch.
        """
        if not self._examples:
            self._prepare()

        with torch.no_grad():
            losses = torch.stack([loss(examples) for examples in self._examples])
        columns = {"held_out_loss": float(losses.mean())}

        if self._reference is not None:
            in_place = self.student.in_place(self.settings.guidance_scale)
            with in_place, output_as_given(self.student.denoiser):
                images = self._images(GuidanceSchedule.none, self.settings.num_steps)
            columns["lpips"] = float(score("lpips", images, self._reference).mean())
        return columns

    def _prepare(self) -> None:
        """Run the teacher once: examples that stay the same, and the images to compare with."""
        source = trajectories(
            self.student.pipe,
            self._drawn_prompts,
            self.settings,
            rows=min(self.settings.rows, len(self.prompts)),
            seed=[self.settings.seed, 1, 0],  # the 1 is the evaluation's, training has a 0
        )
        self._examples = [
            source.at(step, teaching=self.teaching) for step in range(HELD_OUT_BATCHES)
        ]

        # The teacher does not learn, so its images are made once.
        if self.with_images:
            with self.teaching():
                self._reference = self._reference_images()

    def _reference_images(self) -> Float[Tensor, "n channels height width"]:
        """The teacher's images; two of its steps are one of the student's in the second stage."""
        settings = self.settings
        rule = GuidanceSchedule.full if settings.has_guided_teacher else GuidanceSchedule.none
        return self._images(rule, settings.num_steps * (2 if settings.halves_steps else 1))

    def _drawn_prompts(self, rng: np.random.Generator, count: int) -> list[str]:
        """Held-out prompts, none of them twice."""
        return [self.prompts[index] for index in rng.permutation(len(self.prompts))[:count]]

    def _images(
        self, rule: Callable[[int], GuidanceSchedule], num_steps: int
    ) -> Float[Tensor, "n channels height width"]:
        """The images of all prompts in [0, 1], under a guidance schedule."""
        batches = []
        for start in range(0, len(self.prompts), self.settings.rows):
            prompts = self.prompts[start : start + self.settings.rows]
            # The seed is the prompt's place among all, so that it does not depend on the batches.
            noise = [
                torch.Generator("cpu").manual_seed(start + index) for index in range(len(prompts))
            ]
            with torch.no_grad(), guided_by(self.student.pipe, rule):
                batches.append(self._call(prompts, noise, num_steps))
        return torch.cat(batches).float().cpu().clamp(0, 1)

    def _call(
        self, prompts: list[str], noise: list[torch.Generator], num_steps: int
    ) -> Float[Tensor, "n channels height width"]:
        output = call_pipeline(
            self.student.pipe,
            prompts,
            noise,
            guidance_scale=self.settings.guidance_scale,
            num_steps=num_steps,
            output_type="pt",
        )
        images: Float[Tensor, "n channels height width"] = output.images
        return images
