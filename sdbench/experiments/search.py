"""The search for a mask: which steps to leave unguided so that the images change least, by true evaluations.

It starts from the best of several shapes and exchanges unguided steps for guided ones as long as that helps: an
exchange can undo what a greedy choice cannot, and costs one mask where a beam costs many. Exchanges that help each by
itself are also tried together, so that a round can move several steps. What a plan is for, and how it is judged, is in
`planner.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sdbench.experiments.branching import Branch, Brancher, batches
from sdbench.instruments.quality import find_metric
from sdbench.study.call import call_arguments
from sdbench.study.images import eight_bit
from sdbench.study.study import Study
from sdbench.study.units import Unit
from sdbench.variants.guidance import guided_by
from sdbench.variants.registry import Variant
from sdbench.variants.schedule import GuidanceSchedule, Mask, mask_of

WIDTH = 24  # exchanges tried in one round
ROUNDS = 6
RESCALED = "plan, rescaled"


@dataclass(frozen=True)
class Planned:
    """A mask and how it was found.

    Args:
        mask: True where the step is guided.
        start: the shape that the exchanges began with.
        exchanges: how many steps were moved.
        loss: mean of the metric on the tuning pairs, lower is better.
    """

    mask: Mask
    start: str
    exchanges: int
    loss: float

    @property
    def unguided(self) -> int:
        """Number of unguided steps."""
        return self.mask.count(False)


class Tuner:
    """The mean metric of masks on the tuning pairs, each evaluated once.

    Args:
        pipe: a guided pipeline.
        study: the tuning pairs, steps and scale.
        metric: a name in `METRICS`.
        steps: of the loop.
        max_rows: of one denoiser evaluation.

    Attributes:
        losses: by mask; lower is better whatever the metric's direction.
        rows: denoiser rows evaluated so far, all pairs together.

    Raises:
        ValueError: a metric without a direction.
    """

    def __init__(self, pipe: Any, study: Study, metric: str, *, steps: int, max_rows: int) -> None:
        """Evaluate nothing yet."""
        kind, _ = find_metric(metric)
        if kind.higher_is_better is None:
            raise ValueError(
                f"metric '{metric}' has no direction, so no schedule is better than another by it"
            )
        self.pipe, self.column, self.steps = pipe, kind.name, steps
        self.sign = -1.0 if kind.higher_is_better else 1.0
        self.losses: dict[Mask, float] = {}
        self.rows = 0
        self._groups = [
            Brancher(pipe, study, pairs, max_rows) for pairs in batches(study.pairs, study.batch)
        ]

    def evaluate(self, masks: Iterable[Mask]) -> list[float]:
        """The losses of masks, in order."""
        masks = list(masks)
        new = sorted({mask for mask in masks if mask not in self.losses}, reverse=True)
        values: dict[Mask, list[float]] = {mask: [] for mask in new}
        branches = [Branch("mask", None, None, mask) for mask in new]
        for group in self._groups if new else ():
            for call in group.calls(branches):
                for row in group.follow(call)[0]:
                    if math.isnan(row[self.column]):
                        raise ValueError(
                            f"{self.column} has no value for '{row['prompt']}', so nothing can be tuned by it"
                        )
                    values[mask_of(row["mask"])].append(row[self.column])
                    self.rows += row["rows"]
        self.losses |= {mask: self.sign * float(np.mean(found)) for mask, found in values.items()}
        return [self.losses[mask] for mask in masks]

    def rescaled(self, mask: Mask, scale: float) -> float:
        """The loss of a mask whose guided steps have another scale; not before a mask was evaluated."""
        rows = [row for group in self._groups for row in alone(group, rescaled(mask, scale))]
        self.rows += sum(row["nfe"] for row in rows)
        return self.sign * float(np.mean([row[self.column] for row in rows]))


def without(steps: int, unguided: Iterable[int]) -> Mask:
    """The mask that guides all steps but some."""
    dropped = set(unguided)
    return tuple(step not in dropped for step in range(steps))


def shapes(tuner: Tuner, unguided: int) -> dict[str, Mask]:
    """Where a search begins: the steps that matter least by themselves, and every run and interval on a grid."""
    steps = tuner.steps
    singles = tuner.evaluate(without(steps, [step]) for step in range(steps))
    least = sorted(range(steps), key=lambda step: singles[step])[:unguided]
    stride = max(1, steps // 10)
    found = {"additive": without(steps, least)}
    for begin in {*range(0, steps - unguided + 1, stride), steps - unguided}:
        found[f"window:{begin}+{unguided}"] = without(steps, range(begin, begin + unguided))
    for head in range(0, unguided + 1, stride):  # guided in one run, unguided before and after it
        found[f"interval:{head}+{steps - unguided}"] = without(
            steps, [*range(head), *range(head + steps - unguided, steps)]
        )
    return found


def search(tuner: Tuner, unguided: int, *, rounds: int = ROUNDS, width: int = WIDTH) -> Planned:
    """The best mask found with a given number of unguided steps.

    Args:
        tuner: evaluates masks.
        unguided: between 1 and the loop's steps.
        rounds: of exchanges, at most.
        width: exchanges tried in a round.

    Raises:
        ValueError: more unguided steps than steps.
    """
    if not 1 <= unguided <= tuner.steps:
        raise ValueError(f"between 1 and {tuner.steps} steps can be unguided, not {unguided}")
    begun = shapes(tuner, unguided)
    losses = dict(zip(begun, tuner.evaluate(begun.values()), strict=True))
    start = min(losses, key=losses.__getitem__)
    best, exchanges = begun[start], 0
    singles = [tuner.losses[without(tuner.steps, [step])] for step in range(tuner.steps)]
    for _ in range(rounds):
        tried = [mask for mask in _exchanges(best, singles) if mask not in tuner.losses][:width]
        if not tried:
            break
        tuner.evaluate(tried)
        together = _together(best, sorted(tried, key=tuner.losses.__getitem__), tuner.losses)
        tuner.evaluate(together)
        found = min([*tried, *together], key=tuner.losses.__getitem__)
        if tuner.losses[found] < tuner.losses[best]:
            exchanges += sum(new != old for new, old in zip(found, best, strict=True)) // 2
            best = found
    return Planned(best, start, exchanges, tuner.losses[best])


def _exchanges(mask: Mask, singles: Sequence[float]) -> list[Mask]:
    """All masks with one unguided step moved, in turn by what single steps promise and by nearness of the two."""
    pairs = [
        (dropped, guided)
        for dropped, kept in enumerate(mask)
        if not kept
        for guided, other in enumerate(mask)
        if other
    ]
    promising = sorted(pairs, key=lambda pair: singles[pair[1]] - singles[pair[0]])
    near = sorted(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    order = dict.fromkeys(pair for both in zip(promising, near, strict=True) for pair in both)
    unguided = {step for step, kept in enumerate(mask) if not kept}
    return [without(len(mask), unguided - {dropped} | {guided}) for dropped, guided in order]


def _together(mask: Mask, tried: Sequence[Mask], losses: dict[Mask, float]) -> list[Mask]:
    """The exchanges that help, best first, made one after the other as far as they move different steps."""
    moved: set[int] = set()
    found = []
    for other in tried:
        moves = {
            step for step, (kept, new) in enumerate(zip(mask, other, strict=True)) if kept != new
        }
        if losses[other] < losses[mask] and not moves & moved:
            moved |= moves
            found.append(tuple(kept != (step in moved) for step, kept in enumerate(mask)))
    return found[1:]  # the first is an exchange by itself


def search_within(
    tuner: Tuner, bound: float, *, rounds: int = ROUNDS, width: int = WIDTH
) -> Planned:
    """The plan with the most unguided steps whose mean metric stays within a bound on the tuning pairs.

    The number is found by halving, with the starting shapes only, and then raised as long as exchanges reach the bound.

    Raises:
        ValueError: even one unguided step goes beyond it.
    """
    limit = tuner.sign * bound
    low, high = 0, tuner.steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high)
            if min(tuner.evaluate(shapes(tuner, middle).values())) <= limit
            else (low, middle - 1)
        )
    found = None
    for unguided in range(max(low, 1), tuner.steps + 1):
        planned = search(tuner, unguided, rounds=rounds, width=width)
        if planned.loss > limit:
            break
        found = planned
    if found is None:
        raise ValueError(
            f"no mask keeps the {tuner.column} within {bound:g}, not even with one unguided step"
        )
    return found


def rescaled(mask: Mask, scale: float) -> Variant:
    """A mask whose guided steps have another scale."""
    return Variant(RESCALED, lambda _: GuidanceSchedule(mask), guidance_scale=scale)


def alone(group: Brancher, variant: Variant) -> list[dict[str, Any]]:
    """The rows of a variant that is no branch of the trunk, in calls of its own: variant, pair, nfe and metrics."""
    parts = []
    with guided_by(group.pipe, variant.rule) as trace:
        for pairs in batches(group.pairs, max(1, group.max_rows // 2)):
            unit = Unit(group.study, variant, pairs, 0, "measured")
            parts.append(
                group.pipe(**call_arguments(group.study, unit, group.pipe), output_type="pt").images
            )
    images = eight_bit(torch.cat(parts))
    nfe = int(trace.steps["rows"].sum()) // len(images)
    quality = group.quality(images, [prompt for _, prompt, _ in group.pairs])
    return [
        {
            "variant": variant.name,
            "prompt_id": prompt_id,
            "prompt": prompt,
            "seed": seed,
            "nfe": nfe,
        }
        | values
        for (prompt_id, prompt, seed), values in zip(group.pairs, quality, strict=True)
    ]
