"""Reads what a picture shows and scores a picture against its caption.

The reader is a small convolutional classifier with one head per field of `catalogue.FIELDS`. How it
is trained is in `stages.py`; which emoji there are is in `catalogue.py`.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from sdbench.models.emoji_sd import catalogue
from sdbench.models.emoji_sd.catalogue import CATEGORIES, STYLES, TONES

WEIGHTS = Path(__file__).parent / "weights" / "reader.safetensors"
FEATURES = 192  # of the last hidden layer
AMONG = 200  # names among which the right one is looked for
PARTS = ("style", "category", "tone", "name", "name_top_5")


def classes() -> list[int]:
    """How many values each field has."""
    return [len(catalogue.names()), len(TONES), len(CATEGORIES), len(STYLES)]


class Reader(nn.Module):
    """Strided convolutions and a hidden layer, then a block of logits for every field."""

    def __init__(self) -> None:
        """Build the network with random weights."""
        super().__init__()

        widths = [3, 32, 64, 128, 128]
        layers: list[nn.Module] = []
        for i, (narrow, wide) in enumerate(pairwise(widths)):
            kernel = 5 if i == 0 else 3
            layers += [
                nn.Conv2d(narrow, wide, kernel, stride=2, padding=kernel // 2),
                nn.GroupNorm(8, wide),
                nn.SiLU(),
            ]

        # Every convolution halves the side.
        side = catalogue.SIDE // 2**4
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(widths[-1] * side * side, FEATURES),
        )
        self.heads = nn.Sequential(nn.SiLU(), nn.Linear(FEATURES, sum(classes())))

    def features(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n 192"]:
        """The last hidden layer, from images in [0, 1]."""
        return self.layers(images * 2 - 1)

    def forward(self, images: Float[Tensor, "n 3 64 64"]) -> list[Float[Tensor, "n classes"]]:
        """Logits per field, from images in [0, 1]."""
        return list(self.heads(self.features(images)).split(classes(), dim=1))
