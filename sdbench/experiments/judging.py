"""How a plan is judged: what it is compared with, and every metric of all of it on held-out pairs.

The plan itself comes from `search.py`; what is written of it is in `planning.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from sdbench.analysis.plans import timed_as
from sdbench.experiments.branching import Branch, Brancher, Row, baseline, batches
from sdbench.experiments.search import RESCALED, Planned, Tuner, intervals, rescaled, without
from sdbench.instruments.quality import find_metric
from sdbench.models.pipeline import Pipeline
from sdbench.records.columns import FLICKER, WORST
from sdbench.records.names import BASELINE, PLANNED
from sdbench.study.generation import Generation
from sdbench.study.tuning import nearest_scales
from sdbench.variants.controls import fewer_steps, random_masks
from sdbench.variants.grammar import parse
from sdbench.variants.schedule import GuidanceSchedule, Mask, mask_of
from sdbench.variants.variant import Variant

KEPT = frozenset({"prompt_id", "prompt", "seed", "nfe"})
"""Columns of every judged image, besides its metrics."""


class Named(NamedTuple):
    """Which row of a table a mask stands in.

    Attributes:
        variant: its name.
        draw: which of the variant's draws it is, where there are several.
    """

    variant: str
    draw: int | None = None


def controls(
    tuner: Tuner, unguided: int, *, num_steps: int
) -> tuple[dict[Named, Mask], list[Variant]]:
    """What a plan has to be compared with: other masks of the same number, and fewer steps.

    Args:
        tuner: evaluates the intervals of guidance.
        unguided: steps of the plan.
        num_steps: asked of the pipeline, where the loop may run another number.

    Returns:
        Masks by their variant (the interval of guidance is the best on the tuning pairs; random
        steps are several draws); and full guidance with the same work, by both neighbours where no
        number of steps has it.
    """
    steps = tuner.steps
    spaced = ((2 * index + 1) * steps // (2 * unguided) for index in range(unguided))
    masks = {
        Named(f"last:{unguided}"): GuidanceSchedule.last(steps, unguided).mask,
        Named(f"first:{unguided}"): GuidanceSchedule.first(steps, unguided).mask,
        Named(f"spaced:{unguided}"): without(steps, spaced),
    }

    at_random = parse(random_masks(f"{unguided}", math.comb(steps, unguided)))
    drawn = {Named(at_random.name, draw): variant for draw, variant in at_random.draws.items()}
    for name, variant in (drawn or {Named(at_random.name): at_random}).items():
        masks[name] = variant.rule(steps).mask

    guided_in_one_run = intervals(steps, unguided)
    losses = dict(zip(guided_in_one_run, tuner.evaluate(guided_in_one_run.values()), strict=True))
    best = min(losses, key=losses.__getitem__)
    masks[Named(best)] = guided_in_one_run[best]

    # The loop may run another number of steps than the pipeline is asked for.
    work = (2 * steps - unguided) / steps * num_steps
    return masks, [parse(name) for name in fewer_steps(work)]


def weaker(pipe: Pipeline, tuning: Generation, mask: Mask) -> list[Variant]:
    """Full guidance at the constant scale that comes nearest to a mask.

    Returns:
        The variant; none where no guidance, or the whole scale, is the nearest.
    """
    schedule = Variant(PLANNED, lambda _: GuidanceSchedule(mask))
    (scale,) = nearest_scales(pipe, tuning, [schedule], tuple(tuning.pairs)).values()
    return [] if scale is None else [parse(f"scale:{scale:g}")]


class Version(NamedTuple):
    """A plan as it is written.

    Attributes:
        name: among the variants that are judged.
        values: of the metric on the tuning pairs.
        scale: of the guided steps, where it is not the generation's.
    """

    name: str
    values: tuple[float, ...]
    scale: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A plan and everything that it is judged against.

    Args:
        masks: by their variant, the plan's own among them.
        others: variants that are no mask under the generation's settings.
        versions: of the plan; the second has its own scale.
    """

    masks: dict[Named, Mask]
    others: list[Variant]
    versions: list[Version]

    def timed(self, unguided: int) -> list[str]:
        """The variants whose time stands for each that has its own work."""
        names = [PLANNED, *(variant.name for variant in self.others)]
        return [timed_as(name, unguided) for name in names]


def comparison(tuner: Tuner, planned: Planned, *, scales: Sequence[float] = ()) -> Comparison:
    """A plan with its controls, all of them found on the tuning pairs.

    Args:
        tuner: of the search.
        planned: what the search found.
        scales: guidance scales to try for the steps that stay guided.
    """
    tuning = tuner.generation
    masks, others = controls(tuner, planned.unguided, num_steps=tuning.num_steps)
    masks[Named(PLANNED)] = planned.mask

    # A guided image takes two rows.
    batch = max(1, min(tuning.batch, tuner.max_rows // 2))
    others += weaker(tuner.pipe, replace(tuning, batch=batch), planned.mask)

    versions = [Version(PLANNED, planned.values)]
    if scales:
        values = {scale: tuner.rescaled(planned.mask, scale) for scale in scales}
        best = min(scales, key=lambda scale: tuner.loss(values[scale]))
        others.append(rescaled(planned.mask, best))
        versions.append(Version(RESCALED, values[best], best))
    return Comparison(masks, others, versions)


def judge(
    pipe: Pipeline,
    held_out: Generation,
    masks: Mapping[Named, Mask],
    others: Sequence[Variant],
    *,
    metrics: Sequence[str],
    max_rows: int,
) -> list[Row]:
    """Every metric of masks and of other variants, against the fully guided image.

    Args:
        pipe: a guided pipeline.
        held_out: pairs, steps and scale.
        masks: by their variant.
        others: variants that are no such mask.
        metrics: names in `METRICS`.
        max_rows: of one denoiser evaluation.

    Returns:
        One row per variant, draw and pair: `variant`, `draw`, `prompt_id`, `prompt`, `seed`, `nfe`
        and the metrics; the baseline too.
    """
    # Two names may stand for the same mask, which then runs once.
    names: dict[Mask, list[Named]] = {}
    for name, mask in masks.items():
        names.setdefault(mask, []).append(name)
    branches = [Branch("mask", None, None, mask) for mask in sorted(names, reverse=True)]
    trunk = baseline(len(branches[0].mask))

    rows: list[Row] = []
    for pairs in batches(held_out.pairs, held_out.batch):
        group = Brancher(pipe, held_out, pairs, metrics=metrics, max_rows=max_rows)
        for call in group.calls([trunk, *branches]):
            for row in group.follow(call).sensitivity:
                values = {name: row[name] for name in row if is_kept(name, metrics)}
                named = names.get(mask_of(row["mask"]), [Named(BASELINE)])
                rows += [name._asdict() | values for name in named]

        for variant in others:
            rows += group.alone(variant)
    return rows


def is_kept(name: str, metrics: Sequence[str]) -> bool:
    """Whether a column of a branch says which image it is, what it took or how good it is.

    Of videos there are more columns than metrics.
    """
    columns = {find_metric(metric)[0].name for metric in metrics}
    return name in KEPT | columns or name == FLICKER or name.endswith(WORST)
