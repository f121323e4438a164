"""What an image costs in seconds, from a short study of the steps that a budget can buy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdbench.experiments.spending import FAMILIES
from sdbench.models.pipeline import Pipeline
from sdbench.records.names import BASELINE
from sdbench.study.generation import Generation
from sdbench.study.runner import run
from sdbench.study.study import Study
from sdbench.variants.grammar import parse
from sdbench.variants.variant import Variant

REPEATS = 6


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one call, by its parts.

    Attributes:
        guided_s: of a guided step.
        unguided_s: of an unguided one.
        accelerated_s: of a step of each accelerator, by its kind and argument.
        other_s: of all that is no step.
        images: of the call.
    """

    guided_s: float
    unguided_s: float
    accelerated_s: dict[tuple[str, str | None], float]
    other_s: float
    images: int

    def seconds(self, variant: Variant, steps: int) -> float:
        """Seconds of an image, if its steps take what steps of their kind took."""
        mask = variant.rule(steps).mask
        unguided = mask.count(False)
        loop_s = self.guided_s * (steps - unguided) + self.unguided_s * unguided
        if variant.accelerator is not None:
            loop_s = self.accelerated_s[variant.kind, variant.argument] * steps
        return (loop_s + self.other_s) / self.images


def step_times(pipe: Pipeline, generation: Generation, methods: Sequence[str]) -> StepTimes:
    """Measure the steps of full guidance, of none, and of the accelerators among the methods.

    Args:
        pipe: a guided pipeline.
        generation: its first batch runs.
        methods: as `candidates` takes them.
    """
    named = [parse(method) for method in methods if method not in FAMILIES]
    accelerated = [variant for variant in named if variant.accelerator is not None]
    one_batch = {"prompts": generation.prompts[: generation.batch], "seeds": generation.seeds[:1]}
    study = Study(
        **generation.settings | one_batch,
        variants=(parse(BASELINE), parse("unguided"), *accelerated),
        repeats=REPEATS,
        metrics=(),
        name="budget",
    )
    results = run(study, pipe=pipe)
    runs = results.runs[(results.runs["phase"] == "measured") & (results.runs["status"] == "ok")]
    steps = results.steps[results.steps["unit"].isin(runs["unit"])]

    medians = steps.groupby("variant")["latency_s"].median()
    loops = runs.groupby("variant")["denoise_s"].median() / generation.num_steps
    other = runs["text_s"] + runs["decode_s"]
    return StepTimes(
        guided_s=float(medians[BASELINE]),
        unguided_s=float(medians["unguided"]),
        accelerated_s={(v.kind, v.argument): float(loops[v.name]) for v in accelerated},
        other_s=float(other.median()),
        images=len(study.pairs[: study.batch]),
    )
