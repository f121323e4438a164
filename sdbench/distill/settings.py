"""Everything that decides the outcome of a training run, and its check."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from sdbench.distill.examples import Scales

STAGES = ("guidance", "steps")
TEACHERS = ("student", "guided")
METHODS = ("lora", "full")
DATA = ("images", "trajectories")
PRECISIONS = ("no", "fp16", "bf16")
_OWN_PRECISIONS = {"float16": "fp16", "bfloat16": "bf16"}
"""The precision of layers that a base in half precision has already."""


def float32_only(*, whole: bool) -> str:
    """Why a base in another dtype is refused.

    Args:
        whole: the student is a whole denoiser; else it is one of many scales.
    """
    student = "a whole denoiser" if whole else "a student of many scales"
    return f"{student} trains in float32 only; give a lower precision to its layers instead"


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run.

    Args:
        guidance_scale: w of the teacher, above 1; where the student learns many, w of the images
            that are judged.
        stage: "guidance" (one pass learns what guidance makes of two) or "steps" (one step of a
            student learns what two of its own make).
        teacher: in the stage "steps", whose two steps one is to make: "student" (those of the one
            that it starts from) or "guided" (the base's, with guidance).
        w_range: learn all scales between these two, and give w to the student; None for
            `guidance_scale` alone.
        method: "lora" (low-rank layers on the teacher's own weights) or "full" (a trainable copy of
            all of them).
        data: "trajectories" (the teacher's own, from prompts) or "images" (captioned ones, through
            the autoencoder).
        steps: of the optimiser.
        rows: (image, noise level) pairs of a batch, in each process.
        learning_rate: its peak; it rises for `warmup` steps and falls along a cosine.
        warmup: steps.
        rank: of the low-rank layers.
        alpha: their update is scaled by alpha / rank.
        targets: which layers get them: attention, feed-forward, convolutions, timestep (what w runs
            through where the student gets it).
        num_steps: of a trajectory, and of the images that are judged; in the stage "steps" those
            of the new student, half of its teacher's.
        min_snr_gamma: limit of a row's weight; every row counts the same where it is None.
        accumulate: batches whose gradients are summed before a step.
        precision: of the denoiser's layers: "no", "fp16" or "bf16".
        checkpoint_gradients: compute activations again in the backward pass instead of keeping
            them.
        seed: of prompts, images, noise, order and the low-rank layers.
        evaluate_every: steps between two rows of the curve.
        save_every: steps between two checkpoints.

    Raises:
        ValueError: on construction, for anything that could not run.
    """

    guidance_scale: float
    stage: str = "guidance"
    teacher: str = "student"
    w_range: tuple[float, float] | None = None
    method: str = "lora"
    data: str = "trajectories"
    steps: int = 2_000
    rows: int = 8
    learning_rate: float = 1e-4
    warmup: int = 50
    rank: int = 8
    alpha: int = 8
    targets: tuple[str, ...] = ("attention", "feed-forward")
    num_steps: int = 50
    min_snr_gamma: float | None = None
    accumulate: int = 1
    precision: str = "no"
    checkpoint_gradients: bool = False
    seed: int = 0
    evaluate_every: int = 250
    save_every: int = 100

    def __post_init__(self) -> None:
        """Check every field that another part would not."""
        self._check_scales()
        self._check_choices()
        self._check_numbers()
        self._check_stage()
        if not self.targets:
            raise ValueError("there are no targets for the low-rank layers")

    @property
    def record(self) -> dict[str, Any]:
        """The fields that count in this stage, as JSON holds them."""
        # The second stage's layers are those of the student that it starts from.
        others = ("rank", "alpha", "targets") if self.halves_steps else ("stage", "teacher")
        fields = {name: value for name, value in asdict(self).items() if name not in others}
        record: dict[str, Any] = json.loads(json.dumps(fields))
        return record

    @property
    def has_low_rank(self) -> bool:
        """Whether low-rank layers are trained, not a copy of all weights."""
        return self.method == "lora"

    @property
    def halves_steps(self) -> bool:
        """Whether one step learns what two make: the second stage."""
        return self.stage == "steps"

    @property
    def has_guided_teacher(self) -> bool:
        """Whether the teacher is the guided base, not a student."""
        return not self.halves_steps or self.teacher == "guided"

    @property
    def learns_from_images(self) -> bool:
        """Whether the examples come from captioned images, not from trajectories."""
        return self.data == "images"

    @property
    def is_mixed(self) -> bool:
        """Whether layers of the denoiser run in a lower precision than float32."""
        return self.precision != "no"

    @property
    def scales(self) -> Scales:
        """The guidance scales that are learnt."""
        lo, hi = self.w_range or (self.guidance_scale, self.guidance_scale)
        return Scales(lo, hi)

    def check_base(self, dtype: str, *, on_cpu: bool) -> None:
        """Refuse a base that the student cannot be trained on.

        Args:
            dtype: of its weights, such as "float32".
            on_cpu: it is on a CPU.

        Raises:
            ValueError: the first thing that does not fit.
        """
        if dtype != "float32" and (not self.has_low_rank or self.w_range is not None):
            raise ValueError(float32_only(whole=not self.has_low_rank))

        # What is computed in one half precision does not go into weights in the other.
        own = _OWN_PRECISIONS.get(dtype)
        if own is not None and self.precision not in ("no", own):
            raise ValueError(
                f"a base in {dtype} does not train in precision '{self.precision}'; "
                f"its precisions are: no, {own}"
            )
        if on_cpu and self.precision == "fp16":
            trains = "bf16" if own is None else "no"
            raise ValueError(f"precision 'fp16' does not train on a CPU; '{trains}' does")

    def _check_scales(self) -> None:
        """Refuse scales without guidance, and a range that does not fit the other fields."""
        # At w = 1 the guided prediction is the conditional one, which the teacher has already.
        scale = self.guidance_scale
        if not 1 < scale < math.inf:
            raise ValueError(
                f"a guidance scale of {scale:g} is no guidance to learn: w must be above 1"
            )
        if self.w_range is None:
            return

        lo, hi = self.w_range
        if not 1 <= lo < hi < math.inf:
            raise ValueError(
                f"a range of guidance scales goes up from 1 or more, not from {lo:g} to {hi:g}"
            )

        # The judged images are of one scale, which must be one that is learnt.
        if not lo <= scale <= hi:
            raise ValueError(
                f"the student is judged at w = {scale:g}, out of its range {lo:g} to {hi:g}"
            )

        # Only low-rank layers can be made to count by w.
        if not self.has_low_rank:
            raise ValueError(
                f"method '{self.method}' learns one guidance scale; a range is for lora"
            )

    def _check_choices(self) -> None:
        """Refuse a word that is none of a field's own."""
        choices = {
            "stage": STAGES,
            "teacher": TEACHERS,
            "method": METHODS,
            "data": DATA,
            "precision": PRECISIONS,
        }
        for name, words in choices.items():
            word = getattr(self, name)
            if word not in words:
                raise ValueError(f"unknown {name} '{word}'; there are: {', '.join(words)}")

    def _check_stage(self) -> None:
        """Refuse what the second stage does not do."""
        if not self.halves_steps:
            return
        if self.w_range is not None:
            raise ValueError("stage 'steps' is for one guidance scale, not for a range")
        if not self.has_low_rank:
            raise ValueError(f"stage 'steps' trains a LoRA; method '{self.method}' is none")
        if self.learns_from_images:
            raise ValueError("stage 'steps' learns from trajectories, not from images")

    def _check_numbers(self) -> None:
        """Refuse counts below their least value, and what is not positive."""
        counts = (
            "steps", "rows", "rank", "num_steps", "accumulate", "evaluate_every", "save_every",
        )  # fmt: skip
        least_values = dict.fromkeys(counts, 1) | {"warmup": 0, "seed": 0}
        for name, least in least_values.items():
            count = getattr(self, name)
            if count < least:
                raise ValueError(f"{name} must be at least {least}, not {count}")

        for name in ("learning_rate", "alpha", "min_snr_gamma"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, not {value}")
