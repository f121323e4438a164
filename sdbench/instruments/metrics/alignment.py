"""Alignment: the share of a caption's attributes that an image of mini-sd shows."""

from __future__ import annotations

import hashlib

from sdbench.instruments.metric import Metric, Pixels, Scores
from sdbench.models.mini_sd.scenes import SIDE


def alignment(images: Pixels, prompts: list[str]) -> Scores:
    """Share for each image, in [0, 1]; NaN for a prompt outside mini-sd's grammar."""
    from sdbench.models.mini_sd import reader

    return reader.alignment(images, prompts)


def _provenance() -> dict[str, str]:
    from sdbench.models.mini_sd import reader

    digest = hashlib.sha256(reader.WEIGHTS.read_bytes()).hexdigest()
    return {"network": "mini-sd reader", "sha256": digest}


METRIC = Metric(
    "alignment",
    alignment,
    "prompt",
    higher_is_better=True,
    provenance=_provenance,
    meaning=(
        "share of the caption's attributes that the image shows (mini-sd, read by its own reader)"
    ),
    place=5,
    only_side=SIDE,
)
