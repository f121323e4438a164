"""Alignment: the share of a caption's attributes that an image of an embedded model shows."""

from __future__ import annotations

import hashlib

import torch

from sdbench.instruments.metric import Metric, Pixels, Scores
from sdbench.models.mini_sd.scenes import SIDE


def alignment(images: Pixels, prompts: list[str]) -> Scores:
    """Share for each image, in [0, 1]; NaN for a prompt that no embedded model knows.

    A caption says by its grammar which model it belongs to, and that model's reader judges it.
    """
    from sdbench.models.emoji_sd import reader as emoji_sd
    from sdbench.models.mini_sd import reader as mini_sd

    scenes = mini_sd.alignment(images, prompts)
    return torch.where(scenes.isnan(), emoji_sd.alignment(images, prompts), scenes)


def _provenance() -> dict[str, str]:
    from sdbench.models.emoji_sd import reader as emoji_sd
    from sdbench.models.mini_sd import reader as mini_sd

    return {
        "network": "mini-sd reader",
        "sha256": hashlib.sha256(mini_sd.WEIGHTS.read_bytes()).hexdigest(),
        "emoji_sd_sha256": hashlib.sha256(emoji_sd.WEIGHTS.read_bytes()).hexdigest(),
    }


METRIC = Metric(
    "alignment",
    alignment,
    "prompt",
    higher_is_better=True,
    provenance=_provenance,
    meaning=(
        "share of the caption's attributes that the image shows (mini-sd and emoji-sd, read by "
        "their own readers)"
    ),
    place=5,
    only_side=SIDE,
)
