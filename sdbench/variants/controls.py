"""The controls that any comparison needs: what the same work buys without a method.

An odd number of evaluations lies between two numbers of fully guided steps, so there are two controls of that kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from sdbench.variants.registry import parse
from sdbench.variants.schedule import GuidanceSchedule


def controls_of(names: Iterable[str], *, num_steps: int, guidance_scale: float) -> list[str]:
    """Controls for variants whose work is known before they run; each once, and none that is there already.

    For a schedule of K unguided steps: `unguided`, K unguided steps at random, full guidance with as many evaluations
    and full guidance at the schedule's mean scale (which is not tuned); where no step is guided (a student), and for a
    cached offset, full guidance with as many evaluations. What decides its work while it runs and what changes the work
    of an evaluation have none, nor has what is a control itself.

    Args:
        names: texts of the variant grammar.
        num_steps: of the study. Where the loop runs another number (Heun, image-to-image), shares stay shares; a count
            is taken of `num_steps`.
        guidance_scale: of the study.

    Raises:
        ValueError: a count of steps that does not fit in `num_steps`.
    """
    names = list(names)
    found = ["unguided"]
    for variant in map(parse, names):
        control = variant.name.partition(":")[0] in ("unguided", "random", "steps", "scale")
        if control or variant.accelerator is not None:
            continue
        schedule = variant.rule(num_steps)
        unguided = schedule.mask.count(False)
        if unguided > 0:
            found += [name for name in fewer_steps(schedule.nfe) if name != f"steps:{num_steps}"]
        if 0 < unguided < num_steps and variant.policy is None:
            share = re.fullmatch(r"[a-z-]+:[\d.]+%", variant.name)
            found.append(f"random:{100 * unguided / num_steps:g}%@0" if share else f"random:{unguided}@0")
            found += lower_scale(schedule, variant.guidance_scale or guidance_scale)
    return [name for name in dict.fromkeys(found) if name not in names]


def fewer_steps(nfe: float) -> list[str]:
    """Fully guided variants with as many evaluations, or just below and above."""
    return [f"steps:{count}" for count in sorted({max(1, math.floor(nfe / 2)), max(1, math.ceil(nfe / 2))})]


def lower_scale(schedule: GuidanceSchedule, guidance_scale: float) -> list[str]:
    """Constant guidance at a schedule's mean scale over all steps, where that is guidance."""
    mean = 1 + (guidance_scale - 1) * schedule.mask.count(True) / len(schedule.mask)
    return [f"scale:{mean:.2f}"] if mean > 1.005 else []
