"""The controls that any comparison needs: what the same work buys without a method.

An odd number of evaluations lies between two numbers of fully guided steps, so there are two controls of that kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from sdbench.variants.registry import Variant, parse


def controls_of(names: Iterable[str], *, num_steps: int) -> list[str]:
    """Controls for variants whose work is known before they run; each once, and none that is there already.

    For a schedule of K unguided steps: `unguided`, K unguided steps at random, and full guidance with as many
    evaluations; where no step is guided (a student), and for a cached offset, full guidance with as many evaluations.
    What decides its work while it runs and what changes the work of an evaluation have none, nor has what is a control
    itself. The control that has to be tuned, a constant scale, is found by `sdbench.study.tuning`.

    Args:
        names: texts of the variant grammar.
        num_steps: of the study. Where the loop runs another number (Heun, image-to-image), shares stay shares; a count
            is taken of `num_steps`.

    Raises:
        ValueError: a count of steps that does not fit in `num_steps`.
    """
    names = list(names)
    found = ["unguided"]
    for variant in _judged(names):
        schedule = variant.rule(num_steps)
        unguided = schedule.mask.count(False)
        if unguided > 0:
            found += [name for name in fewer_steps(schedule.nfe) if name != f"steps:{num_steps}"]
        if _switches(variant, num_steps):
            share = re.fullmatch(r"[a-z-]+:[\d.]+%", variant.name)
            found.append(
                f"random:{100 * unguided / num_steps:g}%@0" if share else f"random:{unguided}@0"
            )
    return [name for name in dict.fromkeys(found) if name not in names]


def matched_schedules(names: Iterable[str], *, num_steps: int) -> list[Variant]:
    """The variants that guide some steps and not others, which a constant scale is a control for."""
    return [variant for variant in _judged(names) if _switches(variant, num_steps)]


def fewer_steps(nfe: float) -> list[str]:
    """Fully guided variants with as many evaluations, or just below and above."""
    return [
        f"steps:{count}"
        for count in sorted({max(1, math.floor(nfe / 2)), max(1, math.ceil(nfe / 2))})
    ]


def _judged(names: Iterable[str]) -> list[Variant]:
    controls = ("unguided", "random", "steps", "scale")
    found = map(parse, names)
    return [
        each
        for each in found
        if each.accelerator is None and each.name.partition(":")[0] not in controls
    ]


def _switches(variant: Variant, num_steps: int) -> bool:
    mask = variant.rule(num_steps).mask
    return variant.policy is None and 0 < mask.count(False) < len(mask)
