"""Weight schedules: a guidance scale that rises over the steps.

Source: Wang et al. 2024, arXiv 2404.13040.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from sdbench.variants.arguments import NUMBER, matched
from sdbench.variants.policy import Policy
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Method, Variant


class WeightSchedule(Policy):
    """Another guidance scale in every step.

    Args:
        scale: from the share of the steps that have run, in [0, 1], and w to the scale of the step.
        guidance_scale: w that the pipeline is asked for.

    Source: Wang et al. 2024, arXiv 2404.13040.
    """

    def __init__(self, scale: Callable[[float, float], float], guidance_scale: float) -> None:
        """Evaluate nothing yet."""
        self.scale = scale
        self.guidance_scale = guidance_scale

    def unconditional(
        self,
        step: int,
        cond: Float[Tensor, "images ..."],
        uncond: Float[Tensor, "evaluated ..."] | None,
    ) -> Float[Tensor, "images ..."] | None:
        """The prediction that makes the pipeline's own formula guide by this step's scale."""
        assert uncond is not None
        run = step / max(1, self.loop.iterations - 1)
        factor = (self.scale(run, self.guidance_scale) - 1) / (self.guidance_scale - 1)
        return cond - factor * (cond - uncond)


def linear(run: float, guidance_scale: float) -> float:
    """From no guidance on, with w as its mean."""
    return 1 + (guidance_scale - 1) * 2 * run


def cosine(run: float, guidance_scale: float) -> float:
    """From no guidance on along half a wave, with w as its mean."""
    return 1 + (guidance_scale - 1) * (1 - math.cos(math.pi * run))


RISING = {"linear": linear, "cosine": cosine}


def _schedule(name: str, argument: str | None) -> Variant:
    grammar = "schedule:linear, schedule:cosine or schedule:clamp-linear@W, the least scale"
    pattern = rf"(linear|cosine|clamp-linear(?=@))(?:@({NUMBER}))?"
    shape, least = matched(argument, pattern, grammar)
    is_clamped = shape == "clamp-linear"
    if least is not None and not is_clamped:
        raise ValueError(f"expected {grammar}")

    def scale(run: float, guidance_scale: float) -> float:
        if is_clamped:
            return max(float(least), linear(run, guidance_scale))
        return RISING[shape](run, guidance_scale)

    return Variant(name, GuidanceSchedule.full, policy=lambda w: WeightSchedule(scale, w))


METHODS = (
    Method(
        "schedule",
        "schedule:linear|schedule:cosine|schedule:clamp-linear@2",
        "a scale that rises over the steps with w as its mean, the last never below 2: "
        "quality only",
        _schedule,
        source="Wang et al. 2024, arXiv 2404.13040",
        group="formulas",
        examples=("schedule:linear", "schedule:cosine", "schedule:clamp-linear@2"),
        saves_rows=False,
    ),
)
