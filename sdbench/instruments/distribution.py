"""Features of images, and the Fréchet distance between two sets of them.

It says how alike two distributions are and nothing of any one image: a set that ignores its prompts
can be near to the reference. The kernel distance is in `kernel.py`; which sets are compared is in
`experiments/distances.py`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.special import stdtrit
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from sdbench.instruments.kernel import FEWEST_PROMPTS, LEVEL, Estimate
from sdbench.models.causes import require_own

FEATURES = {
    "reader": "the last hidden layer of mini-sd's scene reader, 160 values",
    "inception": (
        "the pool layer of torch-fidelity's InceptionV3, 2048 values: FID and KID as published"
    ),
}


class _AsTheyAre(nn.Module):
    """What torchmetrics asks for features, where they are known already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        return features


@torch.no_grad()
def image_features(
    images: Float[Tensor, "n 3 height width"], kind: str
) -> Float[Tensor, "n width"]:
    """Features of images in [0, 1].

    Raises:
        ValueError: an unknown kind, or images that the reader does not take; InceptionV3 that
            cannot be had.
    """
    if kind == "reader":
        from sdbench.models.mini_sd.reader import hidden

        return hidden(images)
    if kind != "inception":
        raise ValueError(f"unknown features '{kind}'; there are: {', '.join(FEATURES)}")
    return _inception()((images * 255).round().to(torch.uint8))


@cache
def _inception() -> Any:
    try:
        return FrechetInceptionDistance(feature=2048).inception
    except ModuleNotFoundError:
        raise ValueError(
            "InceptionV3 comes with torch-fidelity: pip install torch-fidelity"
        ) from None
    except OSError as error:
        require_own(error, "InceptionV3's weights cannot be kept")
        raise ValueError(f"InceptionV3's weights cannot be downloaded: {error}") from None


def frechet_distance(
    features: Float[Tensor, "n width"], reference: Float[Tensor, "m width"]
) -> float:
    """Fréchet distance between two sets of features (FID where they are InceptionV3's).

    Two sets of one distribution are apart, too, about as 1 / n: the distance has no interval, and
    means something next to that of as many rows of the reference's own kind.

    Source: Heusel et al. 2017, arXiv 1706.08500.
    """
    # The matrix root of a covariance loses digits that float32 does not have to spare.
    metric = FrechetInceptionDistance(feature=_AsTheyAre(features.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(reference, real=True)
    metric.update(features, real=False)
    return float(metric.compute())


def frechet_difference(
    features: Float[Tensor, "n width"],
    baseline: Float[Tensor, "n width"],
    reference: Float[Tensor, "m width"],
    prompts: Int[Tensor, " n"],
) -> Estimate:
    """How much farther a set of images is from the reference than the baseline's, at this n.

    What the distance owes to n is nearly the same in both. The interval is Student's t of the
    difference to first order, which is a mean over prompts: how much an image adds to the distance
    of both sets together, less what the baseline's image adds. The reference is taken as it is.

    Args:
        features: of the variant's images.
        baseline: of the baseline's images of the same prompts and seeds.
        reference: of the other images.
        prompts: the number of every pair's prompt, from 0.

    Returns:
        The estimate; its ends are NaN below 64 prompts, and with fewer images than features.
    """
    estimate = frechet_distance(features, reference) - frechet_distance(baseline, reference)
    images, width = features.shape
    counts = prompts.bincount()
    if len(counts) < FEWEST_PROMPTS or images < width:
        return Estimate(estimate, float("nan"), float("nan"))

    both = torch.cat([features, baseline]).double()
    added = _added(both, reference.double())
    differences = added[:images] - added[images:]
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add(0, prompts, differences)
    error = float((sums / counts).var() / len(counts)) ** 0.5
    half = float(stdtrit(len(counts) - 1, (1 + LEVEL) / 2)) * error
    return Estimate(estimate, estimate - half, estimate + half)


def _added(
    features: Float[Tensor, "n width"], reference: Float[Tensor, "m width"]
) -> Float[Tensor, " n"]:
    """What each row adds to its set's Fréchet distance, to first order and up to a constant."""
    root = _power(torch.cov(reference.T), 0.5)
    shift = features.mean(0) - reference.mean(0)
    deviations = features - features.mean(0)

    # The derivative of tr (R C R)^(1/2) by the covariance C is R (R C R)^(-1/2) R / 2.
    slope = root @ _power(root @ torch.cov(features.T) @ root, -0.5) @ root
    squares = deviations.square().sum(1) - ((deviations @ slope) * deviations).sum(1)
    return 2 * deviations @ shift + squares


def _power(
    covariance: Float[Tensor, "width width"], exponent: float
) -> Float[Tensor, "width width"]:
    """A power of a covariance, within the space that it spans."""
    values, vectors = torch.linalg.eigh(covariance)
    spanned = values > 1e-10 * values.max()
    powers = torch.where(spanned, values.clamp(min=1e-300) ** exponent, 0.0)
    return (vectors * powers) @ vectors.T
