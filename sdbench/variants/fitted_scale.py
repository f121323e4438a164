"""The guidance scale that a guided prediction shows: it tells the two halves apart."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def fitted_scale(
    guided: Float[Tensor, "n ..."], cond: Float[Tensor, "n ..."], uncond: Float[Tensor, "n ..."]
) -> Float[Tensor, ""]:
    """The scale w of a guided prediction `a (u + w (c - u))`, by least squares, whatever a.

    The factor a is that of `guidance_rescale` and of other normalisations. Below 1 the two
    predictions have changed places; NaN where they are equal.

    Args:
        guided: what reached the scheduler.
        cond: the conditional prediction c; may have further channels (a learned variance).
        uncond: the unconditional prediction u, of the same shape.
    """
    u, c = (part.narrow(1, 0, guided.shape[1]).float().flatten() for part in (uncond, cond))
    d = c - u
    o = guided.float().flatten()
    return ((u @ u) * (d @ o) - (u @ d) * (u @ o)) / ((d @ d) * (u @ o) - (u @ d) * (d @ o))


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
