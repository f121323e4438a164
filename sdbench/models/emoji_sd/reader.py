"""Reads what a picture shows and scores a picture against its caption.

The reader is a small convolutional classifier with one head per field of `catalogue.FIELDS`. How it
is trained is in `stages.py`; which emoji there are is in `catalogue.py`.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from sdbench.models.emoji_sd import catalogue
from sdbench.models.emoji_sd.catalogue import CATEGORIES, CATEGORY, NAME, STYLE, STYLES, TONE, TONES

WEIGHTS = Path(__file__).parent / "weights" / "reader.safetensors"
FEATURES = 192  # of the hidden layer
STYLE_GAIN = 3.0  # a mean over places varies less than a layer's output
AMONG = 200  # names among which the right one is looked for
PARTS = ("style", "category", "tone", "name", "name_top_5")


def classes() -> list[int]:
    """How many values each field has."""
    return [len(catalogue.names()), len(TONES), len(CATEGORIES), len(STYLES)]


class Reader(nn.Module):
    """Strided convolutions, then a branch for the style and a hidden layer for all other fields.

    The style branch averages over the picture what it sees in parts of 33 pixels. So it cannot
    know a picture again, and with it the style in which training showed a name.
    """

    def __init__(self) -> None:
        """Build the network with random weights."""
        super().__init__()

        widths = [3, 32, 64, 128, 128]
        halving = [
            _convolution(narrow, wide, kernel=5 if narrow == 3 else 3, stride=2)
            for narrow, wide in pairwise(widths)
        ]
        self.stem = nn.Sequential(*halving[:2])
        self.style = nn.Sequential(
            _convolution(widths[2], 96, kernel=3, stride=2),
            _convolution(96, 96, kernel=3, stride=1),
            nn.Dropout2d(0.2),
            nn.Conv2d(96, len(STYLES), 1),
        )

        # Every convolution halves the side.
        side = catalogue.SIDE // 2**4
        self.layers = nn.Sequential(
            *halving[2:],
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(widths[-1] * side * side, FEATURES),
        )
        self.heads = nn.Sequential(nn.SiLU(), nn.Linear(FEATURES, sum(classes()[:STYLE])))

    def features(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n 192"]:
        """The hidden layer, from images in [0, 1]."""
        return self.layers(self.stem(images * 2 - 1))

    def forward(self, images: Float[Tensor, "n 3 64 64"]) -> list[Float[Tensor, "n classes"]]:
        """Logits per field, from images in [0, 1]."""
        seen = self.stem(images * 2 - 1)
        others = self.heads(self.layers(seen)).split(classes()[:STYLE], dim=1)
        return [*others, STYLE_GAIN * self.style(seen).mean(dim=(2, 3))]


def _convolution(narrow: int, wide: int, *, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(narrow, wide, kernel, stride=stride, padding=kernel // 2)
    return nn.Sequential(convolution, nn.GroupNorm(8, wide), nn.SiLU())


@lru_cache(maxsize=1)
def _shipped() -> Reader:
    reader = Reader()
    reader.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    return reader.eval().requires_grad_(False)


@lru_cache(maxsize=4096)
def others(name: int) -> Int[np.ndarray, " 199"]:
    """The names beside which the right one is looked for: drawn at random, always the same."""
    count = len(catalogue.names())
    rng = np.random.default_rng(crc32(catalogue.names()[name].encode()))
    # The right one is jumped over.
    drawn = rng.choice(count - 1, size=AMONG - 1, replace=False)
    return drawn + (drawn >= name)


@torch.no_grad()
def shown(
    wanted: Int[np.ndarray, "n 4"],
    images: Float[Tensor, "n 3 64 64"],
    reader: Reader | None = None,
) -> Bool[np.ndarray, "n 5"]:
    """Which parts of a caption its picture shows.

    Args:
        wanted: the pictures that the captions name.
        images: values in [0, 1].
        reader: the network to use; the shipped one when not given.

    Returns:
        By the columns of `PARTS`: whether the style, the category and the tone are the reader's
        first choice, and whether the name is its first, and among its first five, of 200.
    """
    _require_size(images)
    logits = (reader or _shipped())(images.float().cpu())
    first = np.stack([part.argmax(dim=1).numpy() for part in logits], axis=1) == wanted
    names = logits[NAME].numpy()
    ahead = np.array(
        [
            (scores[others(int(row[NAME]))] >= scores[row[NAME]]).sum()
            for scores, row in zip(names, wanted, strict=True)
        ]
    )
    return np.column_stack(
        [first[:, STYLE], first[:, CATEGORY], first[:, TONE], ahead < 1, ahead < 5]
    )


def shares(
    wanted: Int[np.ndarray, "n 4"], is_shown: Bool[np.ndarray, "n 5"]
) -> Float[np.ndarray, " n"]:
    """Mean over a caption's parts: style, category, the tone where one is named, and the name.

    The name counts half where it is not the reader's first choice of 200 but one of its first five.
    """
    style, category, tone, first, top_5 = is_shown.T
    toned = wanted[:, TONE] > 0
    right = style * 1.0 + category + toned * tone + (first * 0.5 + top_5 * 0.5)
    return right / (3 + toned)


def share_by_part(
    wanted: Int[np.ndarray, "n 4"], is_shown: Bool[np.ndarray, "n 5"]
) -> dict[str, float]:
    """Share of the pictures that show each part; of the tones, those that a caption names."""
    toned = wanted[:, TONE] > 0
    named = {part: toned if part == "tone" else np.ones_like(toned) for part in PARTS}
    return {part: float(is_shown[named[part], i].mean()) for i, part in enumerate(PARTS)}


def alignment(images: Float[Tensor, "n 3 64 64"], captions: list[str]) -> Float[Tensor, " n"]:
    """Share of each caption's parts that its picture shows, in [0, 1].

    Args:
        images: values in [0, 1].
        captions: one per picture.

    Returns:
        One value per picture; NaN where the caption is not in the grammar of `catalogue`.

    Raises:
        ValueError: images of another size, or another number of captions.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    parsed = [catalogue.parse(caption) for caption in captions]
    readable = [row is not None for row in parsed]
    out = torch.full((len(captions),), float("nan"))
    # The reader sees only the pictures that can be judged.
    if any(readable):
        wanted = np.stack([row for row in parsed if row is not None])
        scores = shares(wanted, shown(wanted, images[readable]))
        out[readable] = torch.from_numpy(scores).float()
    return out


def _require_size(images: Float[Tensor, "n channels height width"]) -> None:
    side = catalogue.SIDE
    if images.shape[1:] != (3, side, side):
        raise ValueError(
            f"the reader takes images of 3 x {side} x {side}, "
            f"not {' x '.join(map(str, images.shape[1:]))}"
        )
