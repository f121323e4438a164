"""Other formulas for the two predictions, or with a third one: the guiders of diffusers.

Source: arXiv 2410.02416 (adaptive projected guidance), 2503.18886 (CFG-Zero*), 2503.18137
(tangential damping), 2403.17377 (perturbed attention), github.com/Stability-AI/sd3.5 (skipped
layers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.models.pipeline import Pipeline
from sdbench.variants.arguments import matched
from sdbench.variants.noise import is_flow
from sdbench.variants.policy import Loop, Policy
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Accelerator, Method, Variant

GUIDERS = ("apg", "cfg-zero", "tcfg")
"""Those that combine two predictions: on every pipeline."""
LEAVING_OUT = ("slg", "pag")
"""Those that evaluate a third one with layers left out: where a pipeline has a guider."""


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
    from diffusers import guiders

    from sdbench.variants.own_guiders import no_notice

    with no_notice():
        if kind == "apg":
            return guiders.AdaptiveProjectedGuidance(guidance_scale=guidance_scale, eta=0.0)
        if kind == "cfg-zero":
            return guiders.ClassifierFreeZeroStarGuidance(
                guidance_scale=guidance_scale, zero_init_steps=int(flow)
            )
        return guiders.TangentialClassifierFreeGuidance(guidance_scale=guidance_scale)


@contextmanager
def _combining(pipe: Pipeline, kind: str) -> Iterator[None]:
    """Another formula, by the guider that a pipeline has."""
    from sdbench.variants.own_guiders import guiders_replaced

    flow = is_flow(pipe.scheduler)
    with guiders_replaced(pipe, lambda guidance_scale: guider(kind, guidance_scale, flow)):
        yield


@contextmanager
def _leaving_out(pipe: Pipeline, kind: str, layers: tuple[int, ...]) -> Iterator[None]:
    """A third prediction with layers left out."""
    from sdbench.variants.own_guiders import layers_left_out

    with layers_left_out(pipe, kind, layers):
        yield


def _guider(name: str, argument: str | None) -> Variant:
    grammar = (
        f"guider: and one of {', '.join(GUIDERS)}, "
        f"or one of {', '.join(LEAVING_OUT)} with layers, such as slg,7,8,9"
    )
    kinds = rf"({'|'.join(GUIDERS)})|({'|'.join(LEAVING_OUT)})((?:,\d+)+)"
    combining, leaving_out, numbers = matched(argument, kinds, grammar)

    if leaving_out is not None:
        layers = tuple(map(int, re.findall(r"\d+", numbers)))
        attach = partial(_leaving_out, kind=leaving_out, layers=layers)
        method = Accelerator(f"guider {leaving_out}", attach, guides=True)
        return Variant(name, GuidanceSchedule.full, accelerator=method)
    return Variant(
        name,
        GuidanceSchedule.full,
        policy=lambda w: Guider(partial(guider, combining), w),
        guider=Accelerator(f"guider {combining}", partial(_combining, kind=combining), guides=True),
    )


METHODS = (
    Method(
        "guider",
        "|".join([*(f"guider:{kind}" for kind in GUIDERS), "guider:slg,7,8,9", "guider:pag,8"]),
        "a guider of diffusers in the place of the formula: quality only; with layers left out of "
        "a third prediction (from the second step on) where the pipeline has a guider",
        _guider,
        source="arXiv 2410.02416, 2503.18886, 2503.18137, 2403.17377; Stability-AI/sd3.5",
        group="formulas",
        examples=tuple(f"guider:{kind}" for kind in GUIDERS),
        saves_rows=False,
    ),
)
