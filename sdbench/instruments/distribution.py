"""How far a set of images is from another set: Fréchet and kernel distance between features.

Both say how alike two distributions are and nothing of any one image: a set that ignores its
prompts can be near to the reference. Both are torchmetrics' own. Which sets are compared, and the
intervals, are in `experiments/distances.py`.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

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

    Source: Heusel et al. 2017, arXiv 1706.08500.
    """
    # The matrix root of a covariance loses digits that float32 does not have to spare.
    metric = FrechetInceptionDistance(feature=_AsTheyAre(features.shape[1]))
    return _distance(metric.set_dtype(torch.float64), features, reference)


def kernel_distance(
    features: Float[Tensor, "n width"], reference: Float[Tensor, "m width"]
) -> float:
    """Squared kernel distance between two sets of features, without bias.

    It is KID where they are InceptionV3's.

    Source: Bińkowski et al. 2018, arXiv 1801.01401.
    """
    size = min(len(features), len(reference))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # It warns that it keeps all features, which are few here.
        message = "Metric `Kernel Inception Distance` will save all"
        warnings.filterwarnings("ignore", message=message)
        metric = KernelInceptionDistance(
            feature=_AsTheyAre(features.shape[1]), subsets=1, subset_size=size
        )
        torch.manual_seed(0)  # it draws the larger set's subset
        return _distance(metric, features, reference)


def _distance(
    metric: Any, features: Float[Tensor, "n width"], reference: Float[Tensor, "m width"]
) -> float:
    metric.update(reference, real=True)
    metric.update(features, real=False)
    value = metric.compute()
    return float(value[0] if isinstance(value, tuple) else value)
