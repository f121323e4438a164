"""Other formulas for the two predictions: the guiders of diffusers.

Source: arXiv 2410.02416 (adaptive projected guidance), 2503.18886 (CFG-Zero*), 2503.18137
(tangential damping).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.variants.arguments import matched
from sdbench.variants.noise import is_flow
from sdbench.variants.policy import Loop, Policy
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Method, Variant

GUIDERS = ("apg", "cfg-zero", "tcfg")


class Guider(Policy):
    """Another formula for the two predictions, by a guider of diffusers.

    Args:
        make: from the guidance scale, and whether the scheduler matches flows, to a `BaseGuidance`.
        guidance_scale: w that the pipeline is asked for.
    """

    def __init__(self, make: Callable[[float, bool], Any], guidance_scale: float) -> None:
        """Make no guider yet: each loop gets its own."""
        self.make = make
        self.guidance_scale = guidance_scale

    def begins(self, loop: Loop) -> None:
        """Start with a guider that knows nothing."""
        super().begins(loop)
        self._guider = self.make(self.guidance_scale, is_flow(loop.scheduler))

    def unconditional(
        self,
        step: int,
        cond: Float[Tensor, "images ..."],
        uncond: Float[Tensor, "evaluated ..."] | None,
    ) -> Float[Tensor, "images ..."] | None:
        """The prediction of which the pipeline's own formula makes the guider's."""
        assert uncond is not None
        self._guider.set_state(step=step, num_inference_steps=self.loop.iterations, timestep=None)
        channels = self.loop.shape[1]
        learned = (
            cond.ndim > 3 and cond.shape[1] == 2 * channels
        )  # a variance that the formula is not about
        c, u = (part.narrow(1, 0, channels) if learned else part for part in (cond, uncond))
        given = c - (self._guider.forward(c, u).pred - c) / (self.guidance_scale - 1)
        return torch.cat([given, uncond.narrow(1, channels, channels)], dim=1) if learned else given


def guider(kind: str, guidance_scale: float, flow: bool) -> Any:
    """A guider of diffusers.

    Args:
        kind: "apg" (adaptive projected guidance, only what is orthogonal to the conditional
            prediction), "cfg-zero" (CFG-Zero*, with its zero first step where flows are matched) or
            "tcfg" (tangential damping).
        guidance_scale: w.
        flow: whether the scheduler matches flows.
    """
    from diffusers.guiders import (
        AdaptiveProjectedGuidance,
        ClassifierFreeZeroStarGuidance,
        TangentialClassifierFreeGuidance,
    )

    with _no_notice():
        if kind == "apg":
            return AdaptiveProjectedGuidance(guidance_scale=guidance_scale, eta=0.0)
        if kind == "cfg-zero":
            return ClassifierFreeZeroStarGuidance(
                guidance_scale=guidance_scale, zero_init_steps=int(flow)
            )
        return TangentialClassifierFreeGuidance(guidance_scale=guidance_scale)


@contextmanager
def _no_notice() -> Iterator[None]:
    """Guiders say at each construction that their interface may change."""
    log = logging.getLogger("diffusers.guiders.guider_utils")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _guider(name: str, argument: str | None) -> Variant:
    (kind,) = matched(
        argument, rf"({'|'.join(GUIDERS)})", f"guider: and one of {', '.join(GUIDERS)}"
    )
    return Variant(name, GuidanceSchedule.full, policy=lambda w: Guider(partial(guider, kind), w))


METHODS = (
    Method(
        "guider",
        "|".join(f"guider:{kind}" for kind in GUIDERS),
        "a guider of diffusers in the place of the formula: quality only",
        _guider,
        source="arXiv 2410.02416, 2503.18886, 2503.18137",
        group="formulas",
        examples=tuple(f"guider:{kind}" for kind in GUIDERS),
        saves_rows=False,
    ),
)
