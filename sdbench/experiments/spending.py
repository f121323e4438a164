"""Ways to spend a budget: for every method the variants that just keep it.

A budget buys fewer steps, fewer guided steps, a student, a cache, under one scheduler or another.
Which of them is best is searched in `budget.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from sdbench.experiments.search import intervals
from sdbench.models.pipeline import Pipeline
from sdbench.models.registry import own_adapter
from sdbench.variants.grammar import parse
from sdbench.variants.schedule import mask_text
from sdbench.variants.variant import Variant

FAMILIES = ("steps", "mask", "scale", "cached")
"""Methods with a number to choose. What else is named is a variant, in as many steps as fit."""
SHARES = (20, 35, 50, 65, 80)  # percent of the steps that masks leave unguided
SCALES = (0.7, 1.4)  # times the guidance scale
PERIODS = (2, 3, 5, 8)  # of a cached offset
PLACES = 4  # where the guided steps of an interval may begin

Unit = Literal["nfe", "seconds"]
Way = tuple[str, str]
"""A method and a scheduler; the pipeline's own is nameless."""
Cost = Callable[[Variant, int], float]
"""What an image of a variant costs in so many steps."""


@dataclass(frozen=True)
class Budget:
    """What an image may cost.

    Args:
        limit: of an image, in the unit.
        unit: "nfe" (denoiser evaluations) or "seconds".
        cost: in the same unit.
        most_steps: of any loop that is tried.
    """

    limit: float
    unit: Unit
    cost: Cost
    most_steps: int

    def keeps(self, variant: Variant) -> bool:
        """Whether a variant with a number of steps of its own stays within the limit."""
        assert variant.num_steps is not None
        return self.cost(variant, variant.num_steps) <= self.limit

    def steps_for(self, variant: Variant) -> int:
        """The most steps of a variant that fit; 0 where none does."""
        counts = range(self.most_steps, 0, -1)
        return next((n for n in counts if self.cost(variant, n) <= self.limit), 0)

    def __str__(self) -> str:
        return f"{self.limit:g} evaluations" if self.unit == "nfe" else f"{self.limit:.3g} s"


@dataclass(frozen=True)
class Candidate:
    """A way to spend a budget.

    Args:
        method: as it was asked for, such as "mask" or "lora".
        variant: with its number of steps.
    """

    method: str
    variant: Variant

    @property
    def way(self) -> Way:
        """How it spends: the best of every way is judged."""
        return self.method, self.variant.scheduler or ""


def default_methods(pipe: Pipeline) -> list[str]:
    """Every family, no guidance, and the model's own student where it has one."""
    methods = [*FAMILIES, "unguided"]
    with suppress(ValueError):
        own_adapter(pipe)
        methods.append("lora")
    return methods


def evaluations(variant: Variant, steps: int) -> float:
    """Denoiser evaluations per image, as far as they are known before the loop."""
    return variant.rule(steps).nfe


def candidates(
    budget: Budget,
    methods: Iterable[str],
    schedulers: Sequence[str | None],
    *,
    guidance_scale: float,
) -> list[Candidate]:
    """Every way to spend a budget that is tried, each once.

    Args:
        budget: to keep.
        methods: names in `FAMILIES`, and variants without a number of steps.
        schedulers: names of `scheduler:NAME`; None is the pipeline's own.
        guidance_scale: w, of which other scales are shares.

    Raises:
        ValueError: a method that is none, one whose work the budget does not count, or a budget
            that buys no step of any.
    """
    found: dict[str, Candidate] = {}
    for method in methods:
        for scheduler in schedulers:
            under = "" if scheduler is None else f"+scheduler:{scheduler}"
            for variant in _variants(budget, method, under, guidance_scale):
                found.setdefault(variant.name, Candidate(method, variant))
    if not found:
        raise ValueError(f"a budget of {budget} an image does not pay for one step of any method")
    return list(found.values())


def _variants(budget: Budget, method: str, under: str, guidance_scale: float) -> Iterator[Variant]:
    """The variants of a method under a scheduler."""
    if method == "mask":
        yield from _masks(budget, under)
        return
    for text in _texts(method, guidance_scale):
        whole = parse(text + under)
        if budget.unit == "nfe" and whole.accelerator is not None:
            raise ValueError(
                f"{text} saves work inside of evaluations, which a budget of evaluations does not "
                "count: give a budget of time"
            )
        if whole.num_steps is not None or whole.draws:
            raise ValueError(f"method '{text}' must be one variant without a number of steps")
        if steps := budget.steps_for(whole):
            yield parse(f"steps:{steps}{under}" if text == "cfg" else f"{text}{under}@{steps}")


def _texts(method: str, guidance_scale: float) -> list[str]:
    """The variants that a method tries, without their steps."""
    if method == "steps":
        return ["cfg"]
    if method == "scale":
        scales = (share * guidance_scale for share in SCALES)
        return [f"scale:{scale:.3g}" for scale in scales if scale > 1]
    if method == "cached":
        return [f"cached:{period}" for period in PERIODS]
    return [method]


def _masks(budget: Budget, under: str) -> Iterator[Variant]:
    """Masks of several shares of unguided steps: the last, the first, and those around a run."""
    for share in SHARES:
        steps = budget.steps_for(parse(f"last:{share}%{under}"))
        unguided = round(share / 100 * steps)
        if not 0 < unguided < steps:
            continue
        yield parse(f"last:{unguided}{under}@{steps}")
        yield parse(f"first:{unguided}{under}@{steps}")

        runs = list(intervals(steps, unguided).values())[1:-1]
        for mask in runs[:: max(1, len(runs) // PLACES)]:
            yield parse(f"mask:{mask_text(mask)}{under}@{steps}")
