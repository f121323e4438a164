"""The controls that any comparison needs: what the same work buys without a method.

An odd number of evaluations lies between two numbers of fully guided steps, so there are two
controls of that kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sdbench.variants.grammar import parse
from sdbench.variants.variant import Variant

DRAWS = 8  # of random masks


def controls_of(variants: Iterable[Variant], *, num_steps: int) -> list[Variant]:
    """Controls for variants whose work is known before they run; none that is there already.

    A schedule of K unguided steps gets `unguided`, K unguided steps at random in a loop of the same
    length, and full guidance with the same number of evaluations. Steps at random are several
    draws, as one may be lucky or unlucky. What guides no step (a student), and a cached offset, get
    full guidance with the same number of evaluations. There is none for what decides its work while
    it runs, for what changes the work of an evaluation, and for what is a control itself. The
    control that has to be tuned, a constant scale, is found by `sdbench.study.tuning`.

    Args:
        variants: of a study.
        num_steps: of the study. Where the loop runs another number (Heun, image-to-image), shares
            stay shares; a count is taken of `num_steps`.

    Raises:
        ValueError: a count of steps that does not fit in `num_steps`.
    """
    variants = list(variants)
    names = ["unguided"]
    for variant in _judged(variants):
        steps = variant.num_steps or num_steps
        schedule = variant.rule(steps)
        unguided = schedule.mask.count(False)
        if unguided > 0:
            fewer = [name for name in fewer_steps(schedule.nfe) if name != f"steps:{num_steps}"]
            names += [name + under_its_scheduler(variant) for name in fewer]
        if _switches(variant, num_steps):
            share = f"{100 * unguided / steps:g}%" if variant.of_share else f"{unguided}"
            names.append(random_masks(share, math.comb(steps, unguided)) + in_its_loop(variant))

    present = {variant.name for variant in variants}
    return [parse(name) for name in dict.fromkeys(names) if name not in present]


def matched_schedules(variants: Iterable[Variant], *, num_steps: int) -> list[Variant]:
    """The variants that guide some steps only: a constant scale is a control for them."""
    return [variant for variant in _judged(variants) if _switches(variant, num_steps)]


def random_masks(count: str, masks: int) -> str:
    """The control for which steps are unguided: the same number at random, over several draws.

    Args:
        count: of unguided steps, as a number or a share.
        masks: that there are of this count; where they are few, so are the draws.
    """
    last = min(DRAWS, masks) - 1
    return f"random:{count}@0..{last}" if last else f"random:{count}@0"


def under_its_scheduler(variant: Variant) -> str:
    """What stands behind a name where a variant has another scheduler."""
    return "" if variant.scheduler is None else f"+scheduler:{variant.scheduler}"


def in_its_loop(variant: Variant) -> str:
    """What stands behind a name where a variant has another scheduler, or steps of its own."""
    steps = "" if variant.num_steps is None else f"@{variant.num_steps}"
    return under_its_scheduler(variant) + steps


def fewer_steps(nfe: float) -> list[str]:
    """Fully guided variants with the same number of evaluations, or just below and above."""
    counts = {max(1, math.floor(nfe / 2)), max(1, math.ceil(nfe / 2))}
    return [f"steps:{count}" for count in sorted(counts)]


def _judged(variants: Iterable[Variant]) -> list[Variant]:
    """Those that are compared with controls."""
    return [
        variant for variant in variants if variant.accelerator is None and not variant.is_control
    ]


def _switches(variant: Variant, num_steps: int) -> bool:
    mask = variant.rule(variant.num_steps or num_steps).mask
    return variant.policy is None and 0 < mask.count(False) < len(mask)
