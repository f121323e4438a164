"""The guidance scale that a guided prediction shows: it tells the two halves apart."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LIKENESS = 0.9
"""Cosine of what reached the scheduler and the formula's, below which nothing is told."""


def fitted_scale(
    guided: Float[Tensor, "n ..."], cond: Float[Tensor, "n ..."], uncond: Float[Tensor, "n ..."]
) -> Float[Tensor, ""]:
    """The scale w of a guided prediction `a (u + w (c - u))`, by least squares, whatever a.

    The factor a is that of `guidance_rescale` and of other normalisations. Below 1 the two
    predictions have changed places. NaN where they are equal, and where nothing is told: what
    reached the scheduler has another shape, or is nothing like the formula.

    Args:
        guided: what reached the scheduler.
        cond: the conditional prediction c; may have further channels (a learned variance).
        uncond: the unconditional prediction u, of the same shape.
    """
    unknown = guided.new_full((), torch.nan, dtype=torch.float32)
    if not is_laid_out_like(guided, cond):
        return unknown
    u, c = (part.narrow(1, 0, guided.shape[1]).float().flatten() for part in (uncond, cond))
    d = c - u
    o = guided.float().flatten()

    scale = ((u @ u) * (d @ o) - (u @ d) * (u @ o)) / ((d @ d) * (u @ o) - (u @ d) * (d @ o))
    fitted = u + scale * d
    likeness = (o @ fitted).abs() / (o.norm() * fitted.norm())
    return torch.where(likeness > LIKENESS, scale, unknown)


def is_laid_out_like(latents: Float[Tensor, "n ..."], prediction: Float[Tensor, "n ..."]) -> bool:
    """Whether a prediction is of these latents, element for element; it may have more channels."""
    shape, other = latents.shape, prediction.shape
    if len(shape) != len(other) or len(shape) < 2:
        return False
    return shape[0] == other[0] and shape[2:] == other[2:] and shape[1] <= other[1]


def require_order(pipeline: str, scale: float) -> None:
    """Refuse a pipeline whose conditional rows come first.

    Args:
        pipeline: its class.
        scale: that its first guided step shows; NaN, of two equal predictions, tells nothing.

    Raises:
        ValueError: the scale is 1 - w, as where the halves have changed places.
    """
    if scale < 0.5:
        raise ValueError(
            f"{pipeline} does not guide as u + w (c - u) with w above 1 and "
            "the unconditional rows first "
            f"(its first guided step has w = {scale:.2f}): not supported"
        )
