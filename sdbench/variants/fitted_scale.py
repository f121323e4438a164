"""The guidance scale that a guided prediction shows: it tells which rows of a call are the conditional ones."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def fitted_scale(
    guided: Float[Tensor, "n ..."], cond: Float[Tensor, "n ..."], uncond: Float[Tensor, "n ..."]
) -> Float[Tensor, ""]:
    """The scale w of a guided prediction `a (u + w (c - u))`, by least squares, whatever the factor a.

    The factor is that of `guidance_rescale` and of other normalisations. Below 1 the two predictions have
    changed places; NaN where they are equal.

    Args:
        guided: what reached the scheduler.
        cond: the conditional prediction c; may have further channels (a learned variance).
        uncond: the unconditional prediction u, of the same shape.
    """
    u, c = (part.narrow(1, 0, guided.shape[1]).float().flatten() for part in (uncond, cond))
    d = c - u
    o = guided.float().flatten()
    return ((u @ u) * (d @ o) - (u @ d) * (u @ o)) / ((d @ d) * (u @ o) - (u @ d) * (d @ o))
