"""The guidance scale that a guided prediction shows: it tells the two halves apart.

A fit passes over all values some thirty times, so a pipeline is fitted once (`telling.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.variants.rows import stacked

LIKENESS = 0.9
"""Cosine of what reached the scheduler and the formula's, below which nothing is told."""
BETTER = 0.1
"""Share of a fit's rest that another one may leave at most to take its place."""
TRIMS = 3  # times that the half of the values which fits best is chosen
CLOSE = 1e-2
"""Share that such a half may leave unexplained."""
BETWEEN = (0.1, 0.9)
"""Scales that tell no order: w of one order is 1 - w of the other, and some are meant so."""


class Fit(NamedTuple):
    """How a guided prediction is made of the two that it comes from.

    Attributes:
        scale: w, a scalar; NaN where nothing is told.
        factor: a, by which all of it is multiplied.
        rest: norm of what the formula does not explain, over the norm of the guided prediction.
        difference: of the predictions, c - u, laid out as the guided one.
    """

    scale: Float[Tensor, ""]
    factor: Float[Tensor, ""]
    rest: Float[Tensor, ""]
    difference: Float[Tensor, "n ..."]

    def unguided(self, guided: Float[Tensor, "n ..."], *, swapped: bool) -> Float[Tensor, "n ..."]:
        """What the formula gives where the conditional prediction stands for both.

        Args:
            guided: what the fit is of.
            swapped: whether the predictions have changed places.
        """
        kept = 0.0 if swapped else 1.0
        return guided + (self.factor * (kept - self.scale) * self.difference).to(guided.dtype)


@torch.no_grad()
def fitted(
    guided: Float[Tensor, "n ..."],
    first: Any,
    second: Any,
    sample: Float[Tensor, "n ..."] | None = None,
) -> Fit | None:
    """Fit `a (u + w (c - u)) + b x` to a guided prediction, by least squares, whatever a and b.

    The factor a is that of `guidance_rescale` and of other normalisations. The latents x are part
    of it where a pipeline preconditions what its network predicts. Without waiting for a device.

    Args:
        guided: what reached the scheduler.
        first: the prediction that is taken for the unconditional one u; a tensor, or one per image.
        second: that is taken for the conditional one c. Where the two have changed places, the
            scale is 1 - w (`is_swapped`).
        sample: the latents x.

    Returns:
        None where the layout of the predictions is not told by their shapes.
    """
    best: Fit | None = None
    bases = [[]] if sample is None or sample.shape != guided.shape else [[], [sample]]
    layouts = [list(_cut(stacked(prediction), guided)) for prediction in (first, second)]
    if len(layouts[0]) != len(layouts[1]):
        return None  # the two predictions differ in shape
    for u, c in zip(*layouts, strict=True):
        fits = [_least_squares(guided, u, c, further) for further in bases]
        if guided.ndim > 3 and guided.shape[1] % 2 == 0:
            fits.append(_without_variance(guided, u, c))
        for fit in fits:
            best = fit if best is None else _better(best, fit)
        for further in bases:
            best = _or_trimmed(best, _least_squares(guided, u, c, further, trimmed=True))
    return best


def is_swapped(scale: float) -> bool | None:
    """Whether a scale says that both predictions have changed places; None where it tells nothing.

    Args:
        scale: w, or NaN.
    """
    low, high = BETWEEN
    if scale < low:
        return True
    return False if scale > high else None


def require_order(pipeline: str, scale: float) -> None:
    """Refuse a pipeline whose guidance contradicts the order in which its halves are read.

    Args:
        pipeline: its class.
        scale: that its first guided step shows; NaN, of two equal predictions, tells nothing.

    Raises:
        ValueError: the scale is 1 - w, as where the halves have changed places.
    """
    if is_swapped(scale):
        raise ValueError(
            f"{pipeline} does not guide as u + w (c - u) with w above 1 "
            f"(its first guided step has w = {scale:.2f}): not supported"
        )


def is_laid_out_like(latents: Float[Tensor, "n ..."], prediction: Float[Tensor, "n ..."]) -> bool:
    """Whether a prediction is of these latents, element for element; it may have more channels."""
    shape, other = latents.shape, prediction.shape
    if len(shape) != len(other) or len(shape) < 2:
        return False
    return shape[0] == other[0] and shape[2:] == other[2:] and shape[1] <= other[1]


def _least_squares(
    guided: Float[Tensor, "n ..."],
    u: Float[Tensor, "n ..."],
    c: Float[Tensor, "n ..."],
    further: Sequence[Float[Tensor, "n ..."]],
    *,
    trimmed: bool = False,
) -> Fit:
    """The fit with one layout of the predictions, or of the half of the values that fits best."""
    d = c.float() - u.float()
    parts = [part.double().flatten() for part in (u, d, *further)]
    target = guided.double().flatten()
    weights = _solved(parts, target)
    for _ in range(TRIMS if trimmed else 0):
        rest = (target - _combined(weights, parts)).abs()
        kept = (rest <= rest.median()).double()
        weights = _solved([kept * part for part in parts], kept * target)

    explained = _combined(weights, parts)
    if trimmed:
        target, explained = kept * target, kept * explained
    size = target.norm()
    likeness = (target @ explained) / (size * explained.norm())
    factor, scale = weights[0], weights[1] / weights[0]
    unknown = torch.full_like(scale, torch.nan)
    rest_share = (target - explained).norm() / size
    return Fit(torch.where(likeness > LIKENESS, scale, unknown), factor, rest_share, d)


def _solved(
    parts: Sequence[Float[Tensor, " values"]], target: Float[Tensor, " values"]
) -> Float[Tensor, " parts"]:
    """Weights of the parts whose sum is nearest to the target."""
    # Of lengths one, so that their sizes do not decide what is small.
    norms = torch.stack([part.norm() for part in parts])
    gram = torch.stack([torch.stack([one @ other for other in parts]) for one in parts])
    gram = gram / norms / norms[:, None]
    along = torch.stack([part @ target for part in parts]) / norms
    shares, _ = torch.linalg.solve_ex(gram, along)
    return shares / norms


def _combined(
    weights: Float[Tensor, " parts"], parts: Sequence[Float[Tensor, " values"]]
) -> Float[Tensor, " values"]:
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)


def _without_variance(
    guided: Float[Tensor, "n ..."], u: Float[Tensor, "n ..."], c: Float[Tensor, "n ..."]
) -> Fit:
    """The fit where half of the channels are a learned variance, which is not guided."""
    half = guided.shape[1] // 2
    fit = _least_squares(guided[:, :half], u[:, :half], c[:, :half], [])
    nothing = torch.zeros_like(fit.difference)
    return fit._replace(difference=torch.cat([fit.difference, nothing], dim=1))


def _or_trimmed(whole: Fit | None, trimmed: Fit) -> Fit:
    """The scale of some values where all of them tell none: others may be given (a first frame).

    It is then not exact, so what is left over stays that of all values.
    """
    assert whole is not None
    told = torch.where(trimmed.rest < CLOSE, trimmed.scale, whole.scale)
    return whole._replace(scale=torch.where(whole.scale.isnan(), told, whole.scale))


def _better(one: Fit, other: Fit) -> Fit:
    """The other fit where it leaves much less, else the one."""
    takes = (other.rest < BETTER * one.rest) | one.scale.isnan()
    return Fit(*(torch.where(takes, new, old) for old, new in zip(one, other, strict=True)))


def _cut(
    tensor: Float[Tensor, "n ..."], guided: Float[Tensor, "n ..."]
) -> Iterator[Float[Tensor, "n ..."]]:
    """A prediction as pipelines lay it out for their schedulers, in all ways that fit the shape.

    A dimension may be cut at either end.
    """
    wanted = guided.shape
    tensor = _arranged(tensor, wanted)
    if tensor.ndim != len(wanted) or tensor.ndim < 2 or len(tensor) != wanted[0]:
        return

    unlike = [dim for dim, size in enumerate(wanted) if tensor.shape[dim] != size]
    if not unlike:
        yield tensor
    elif len(unlike) == 1 and tensor.shape[unlike[0]] > wanted[unlike[0]]:
        dim, size = unlike[0], wanted[unlike[0]]
        yield tensor.narrow(dim, 0, size)
        yield tensor.narrow(dim, tensor.shape[dim] - size, size)


def _arranged(tensor: Float[Tensor, "n ..."], wanted: torch.Size) -> Float[Tensor, "n ..."]:
    """A prediction with its rows twice, its frames as rows or its tokens as a picture."""
    if 2 * len(tensor) == wanted[0]:
        tensor = torch.cat([tensor, tensor])
    if tensor.ndim == 5 and len(wanted) == 4 and wanted[0] == len(tensor) * tensor.shape[2]:
        return tensor.transpose(1, 2).flatten(0, 1)
    if tensor.ndim == 3 and len(wanted) > 3 and tensor.shape[2] == wanted[1]:
        return _of_tokens(tensor, wanted)
    if tensor.ndim != len(wanted) and _without_ones(tensor.shape) == _without_ones(wanted):
        return tensor.reshape(wanted)
    return tensor


def _of_tokens(
    tokens: Float[Tensor, "n tokens channels"], wanted: torch.Size
) -> Float[Tensor, "n ..."]:
    """Tokens as a picture or a video as wide as another one."""
    inner = wanted[3:].numel()  # all but rows, channels, and what may have been cut
    if tokens.shape[1] % inner:
        return tokens
    return tokens.transpose(1, 2).unflatten(2, (-1, *wanted[3:]))


def _without_ones(shape: torch.Size) -> list[int]:
    return [size for size in shape if size != 1]
