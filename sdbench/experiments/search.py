"""The search for a mask: which steps to leave unguided so that the images change least.

It starts from the best of several shapes and exchanges unguided steps for guided ones as long as
that helps: an exchange can undo what a greedy choice cannot, and costs one mask where a beam costs
many. Exchanges that help each by itself are also tried together, so that a round can move several
steps. All masks are truly evaluated. What a plan is for is in `planning.py`, how it is judged in
`judging.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdbench.experiments.branching import Branch, Brancher, Row, batches, judgeable
from sdbench.instruments.quality import find_metric
from sdbench.models.pipeline import Pipeline
from sdbench.study.generation import Generation
from sdbench.variants.schedule import GuidanceSchedule, Mask, mask_of
from sdbench.variants.variant import Variant

WIDTH = 24  # exchanges tried in one round
ROUNDS = 6
GRID = 10  # runs and intervals that a search begins with start at about so many places
RESCALED = "plan, rescaled"


@dataclass(frozen=True)
class Planned:
    """A mask and how it was found.

    Args:
        mask: True where the step is guided.
        start: the shape that the exchanges began with.
        exchanges: how many steps were moved.
        loss: mean of the metric on the tuning pairs, lower is better.
        values: of the metric, one per tuning pair; a few of them can decide the mean.
    """

    mask: Mask
    start: str
    exchanges: int
    loss: float
    values: tuple[float, ...]

    @property
    def unguided(self) -> int:
        """Number of unguided steps."""
        return self.mask.count(False)


class Tuner:
    """The mean metric of masks on the tuning pairs, each evaluated once.

    Args:
        pipe: a guided pipeline.
        generation: the tuning pairs, steps and scale.
        metric: a name in `METRICS`.
        steps: of the loop.
        max_rows: of one denoiser evaluation.

    Attributes:
        losses: by mask; lower is better whatever the metric's direction.
        values: of the metric, by mask, one per pair.
        rows: denoiser rows evaluated so far, all pairs together.

    Raises:
        ValueError: a metric without a direction, or one that cannot judge these images.
    """

    def __init__(
        self, pipe: Pipeline, generation: Generation, metric: str, *, steps: int, max_rows: int
    ) -> None:
        """Evaluate nothing yet."""
        kind, _ = find_metric(metric)
        metrics = judgeable(generation, [metric])
        if kind.higher_is_better is None:
            raise ValueError(
                f"metric '{metric}' has no direction, so no schedule is better than another by it"
            )

        self.pipe = pipe
        self.generation = generation
        self.metric = metric
        self.column = kind.name

        # A loss is lower where an image is better.
        self.sign = -1.0 if kind.higher_is_better else 1.0
        self.steps = steps
        self.max_rows = max_rows
        self.losses: dict[Mask, float] = {}
        self.values: dict[Mask, tuple[float, ...]] = {}
        self.rows = 0

        # Each keeps its trunk, which all masks of the search leave.
        self._groups = [
            Brancher(pipe, generation, pairs, metrics=metrics, max_rows=max_rows)
            for pairs in batches(generation.pairs, generation.batch)
        ]

    def evaluate(self, masks: Iterable[Mask]) -> list[float]:
        """The losses of masks, in order."""
        masks = list(masks)
        new = sorted({mask for mask in masks if mask not in self.losses}, reverse=True)
        values: dict[Mask, list[float]] = {mask: [] for mask in new}
        branches = [Branch("mask", None, None, mask) for mask in new]

        for group in self._groups if new else ():
            for call in group.calls(branches):
                for row in group.follow(call).sensitivity:
                    values[mask_of(row["mask"])].append(self._value(row))
                    self.rows += row["rows"]

        for mask, of_pairs in values.items():
            self.values[mask] = tuple(of_pairs)
            self.losses[mask] = self.loss(of_pairs)
        return [self.losses[mask] for mask in masks]

    def rescaled(self, mask: Mask, scale: float) -> tuple[float, ...]:
        """The metric of a mask whose guided steps have another scale, once a mask was evaluated."""
        variant = rescaled(mask, scale)
        rows = [row for group in self._groups for row in group.alone(variant)]
        self.rows += sum(row["nfe"] for row in rows)
        return tuple(row[self.column] for row in rows)

    def loss(self, values: Sequence[float]) -> float:
        """The mean of the metric over pairs, turned so that lower is better."""
        return self.sign * float(np.mean(values))

    def _value(self, row: Row) -> float:
        value: float = row[self.column]
        if math.isnan(value):
            raise ValueError(
                f"{self.column} has no value for '{row['prompt']}', so nothing can be tuned by it"
            )
        return value


def without(steps: int, unguided: Iterable[int]) -> Mask:
    """The mask that guides all steps but some."""
    dropped = set(unguided)
    return tuple(step not in dropped for step in range(steps))


def windows(steps: int, unguided: int) -> dict[str, Mask]:
    """Masks unguided in one run, on a grid of its places; by the names of their variants."""
    last = steps - unguided
    starts = {*range(0, last + 1, _stride(steps)), last}
    return {
        f"window:{start}+{unguided}": without(steps, range(start, start + unguided))
        for start in starts
    }


def intervals(steps: int, unguided: int) -> dict[str, Mask]:
    """Masks guided in one run and unguided around it, on a grid of its places; by name, too."""
    guided = steps - unguided
    return {
        f"interval:{head}+{guided}": without(steps, [*range(head), *range(head + guided, steps)])
        for head in range(0, unguided + 1, _stride(steps))
    }


def shapes(tuner: Tuner, unguided: int) -> dict[str, Mask]:
    """Where a search begins: the steps that matter least by themselves, every run and interval."""
    steps = tuner.steps
    singles = tuner.evaluate(without(steps, [step]) for step in range(steps))
    least = sorted(range(steps), key=lambda step: singles[step])[:unguided]
    additive = {"additive": without(steps, least)}
    return additive | windows(steps, unguided) | intervals(steps, unguided)


def _stride(steps: int) -> int:
    return max(1, steps // GRID)


def search(tuner: Tuner, unguided: int, *, rounds: int = ROUNDS, width: int = WIDTH) -> Planned:
    """The best mask of a search with a given number of unguided steps.

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
    best = begun[start]
    exchanges = 0

    # In `shapes` every step was dropped by itself.
    singles = [tuner.losses[without(tuner.steps, [step])] for step in range(tuner.steps)]
    for _ in range(rounds):
        tried = [mask for mask in _exchanges(best, singles) if mask not in tuner.losses][:width]
        if not tried:
            break
        tuner.evaluate(tried)
        together = _together(best, sorted(tried, key=tuner.losses.__getitem__), tuner.losses)
        tuner.evaluate(together)

        nearby = min([*tried, *together], key=tuner.losses.__getitem__)
        if tuner.losses[nearby] < tuner.losses[best]:
            exchanges += sum(new != old for new, old in zip(nearby, best, strict=True)) // 2
            best = nearby
    return Planned(best, start, exchanges, tuner.losses[best], tuner.values[best])


def _exchanges(mask: Mask, singles: Sequence[float]) -> list[Mask]:
    """All masks with one unguided step moved.

    In turn come those that single steps promise most of, and those whose two steps are nearest.
    """
    unguided = [step for step, is_guided in enumerate(mask) if not is_guided]
    guided = [step for step, is_guided in enumerate(mask) if is_guided]
    pairs = [(old, new) for old in unguided for new in guided]

    promising = sorted(pairs, key=lambda pair: singles[pair[1]] - singles[pair[0]])
    near = sorted(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    order = dict.fromkeys(pair for both in zip(promising, near, strict=True) for pair in both)
    return [without(len(mask), {*unguided} - {old} | {new}) for old, new in order]


def _together(mask: Mask, tried: Sequence[Mask], losses: Mapping[Mask, float]) -> list[Mask]:
    """The exchanges that help, best first, one after the other where they move different steps."""
    moved: set[int] = set()
    combined = []
    for other in tried:
        moves = {step for step, is_guided in enumerate(mask) if is_guided != other[step]}
        if losses[other] < losses[mask] and not moves & moved:
            moved |= moves
            combined.append(tuple(kept != (step in moved) for step, kept in enumerate(mask)))
    return combined[1:]  # the first is an exchange by itself


def search_within(
    tuner: Tuner, bound: float, *, rounds: int = ROUNDS, width: int = WIDTH
) -> Planned:
    """The plan with the most unguided steps whose mean metric stays within a bound.

    The number is found by halving, with the starting shapes only. It is then raised as long as
    exchanges reach the bound.

    Args:
        tuner: evaluates masks, on the tuning pairs.
        bound: of the metric's mean.
        rounds: of exchanges, at most.
        width: exchanges tried in a round.

    Raises:
        ValueError: even one unguided step goes beyond it.
    """
    limit = tuner.sign * bound

    # By halving: `low` steps keep the bound, more than `high` do not.
    low = 0
    high = tuner.steps
    while low < high:
        middle = (low + high + 1) // 2
        if min(tuner.evaluate(shapes(tuner, middle).values())) <= limit:
            low = middle
        else:
            high = middle - 1

    # Exchanges may reach further than the shapes that they begin with.
    best = None
    for unguided in range(max(low, 1), tuner.steps + 1):
        planned = search(tuner, unguided, rounds=rounds, width=width)
        if planned.loss > limit:
            break
        best = planned

    if best is None:
        raise ValueError(
            f"no mask keeps the {tuner.column} within {bound:g}, not even with one unguided step"
        )
    return best


def rescaled(mask: Mask, scale: float) -> Variant:
    """A mask whose guided steps have another scale."""
    return Variant(RESCALED, lambda _: GuidanceSchedule(mask), guidance_scale=scale)
