"""FLIP: the difference that is seen when two images are flipped between."""

from __future__ import annotations

from collections.abc import Iterable

import flip_evaluator
import numpy as np
import torch
from jaxtyping import Float

from sdbench.instruments.metric import Metric, Pixels, Scores, of_package

Picture = Float[np.ndarray, "height width 3"]


def flip(images: Pixels, reference: Pixels) -> Scores:
    """Mean difference of each image to its reference; 0 is identical.

    Source: Andersson et al. 2020, doi 10.1145/3406183.
    """
    pairs = zip(_pictures(images), _pictures(reference), strict=True)
    return torch.tensor([_flip_of_one(*pair) for pair in pairs])


def _flip_of_one(image: Picture, reference: Picture) -> float:
    _, mean_error, _ = flip_evaluator.evaluate(reference, image, "LDR", applyMagma=False)
    return mean_error


def _pictures(images: Pixels) -> Iterable[Picture]:
    return map(np.ascontiguousarray, images.permute(0, 2, 3, 1).cpu().numpy())


METRIC = Metric(
    "flip",
    flip,
    "reference",
    higher_is_better=False,
    provenance=of_package("flip-evaluator", settings="LDR, 67 pixels per degree"),
    meaning="FLIP, difference seen when two images are flipped between; 0 is identical",
    place=2,
)
