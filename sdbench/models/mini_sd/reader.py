"""Reads a scene's attributes back from an image and scores an image against its caption.

The reader is a small convolutional classifier with one head per field of `scenes.FIELDS`. How it is
trained is in `train.py`; how scenes look is in `scenes.py`.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from sdbench.models.mini_sd import scenes
from sdbench.models.mini_sd.scenes import ABSENT, BACKGROUND, FIRST, RELATION, SECOND

WEIGHTS = Path(__file__).parent / "weights" / "reader.safetensors"
CLASSES = [len(words) for words in scenes.WORDS]
KINDS = {
    "size": [0, 5],
    "texture": [1, 6],
    "colour": [2, 7],
    "shape": [3, 8],
    "relation": [RELATION],
    "background": [BACKGROUND],
}
"""Kinds of attributes and their columns in a scene."""


class Reader(nn.Module):
    """Four strided convolutions and a hidden layer, then a block of logits for every field."""

    def __init__(self) -> None:
        """Build the network with random weights."""
        super().__init__()

        widths = [3, 32, 64, 96, 128]
        layers: list[nn.Module] = []
        for i, (narrow, wide) in enumerate(pairwise(widths)):
            kernel = 5 if i == 0 else 3
            layers += [
                nn.Conv2d(narrow, wide, kernel, stride=2, padding=kernel // 2),
                nn.GroupNorm(8, wide),
                nn.SiLU(),
            ]

        # Every convolution halves the side.
        side = scenes.SIDE // 2**4
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(128 * side * side, 160),
            nn.SiLU(),
            nn.Linear(160, sum(CLASSES)),
        )

    def forward(self, images: Float[Tensor, "n 3 64 64"]) -> list[Float[Tensor, "n classes"]]:
        """Logits per field, from images in [0, 1]."""
        return list(self.layers(images * 2 - 1).split(CLASSES, dim=1))


def canonical(rows: Int[np.ndarray, "n 10"]) -> Int[np.ndarray, "n 10"]:
    """The same scenes, named from the left or from the top."""
    # An image cannot say which object was named first: "right of" becomes "left of", and "below"
    # becomes "above".
    flipped = np.isin(rows[:, RELATION], (2, 4))
    out = rows.copy()
    out[flipped, FIRST] = rows[flipped, SECOND]
    out[flipped, SECOND] = rows[flipped, FIRST]
    out[flipped, RELATION] -= 1
    return out


@lru_cache(maxsize=1)
def _shipped() -> Reader:
    reader = Reader()
    reader.load_state_dict({name: weight.float() for name, weight in load_file(WEIGHTS).items()})
    return reader.eval().requires_grad_(False)


@torch.no_grad()
def read(
    images: Float[Tensor, "n 3 64 64"], reader: Reader | None = None
) -> Int[np.ndarray, "n 10"]:
    """The scene that each image shows, in canonical form.

    Args:
        images: values in [0, 1].
        reader: the network to use; the shipped one when not given.

    Returns:
        Rows of `scenes.FIELDS`; the second object is `ABSENT` where one object is seen.
    """
    _require_size(images)
    logits = (reader or _shipped())(images.float().cpu())
    rows = torch.stack([field.argmax(dim=1) for field in logits], dim=1).numpy()
    # The heads of the second object name something also where there is none.
    rows[rows[:, RELATION] == 0, SECOND] = ABSENT
    return rows


@torch.no_grad()
def hidden(images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n 160"]:
    """The shipped reader's last hidden layer, from images in [0, 1].

    Raises:
        ValueError: images of another size.
    """
    _require_size(images)
    features: Tensor = _shipped().layers[:-1](images.float().cpu() * 2 - 1)
    return features


def _require_size(images: Float[Tensor, "n channels height width"]) -> None:
    if images.shape[1:] != (3, scenes.SIDE, scenes.SIDE):
        raise ValueError(
            f"the reader takes images of 3 x 64 x 64, not {' x '.join(map(str, images.shape[1:]))}"
        )


def attribute_accuracy(read_rows: Int[np.ndarray, "n 10"], drawn: Int[np.ndarray, "n 10"]) -> float:
    """Share of the drawn scenes' attributes that were read rightly, over all images and fields."""
    truth = canonical(drawn)
    present = truth != ABSENT
    return float((read_rows == truth)[present].mean())


def shown(
    wanted: Int[np.ndarray, "n 10"], seen: Int[np.ndarray, "n 10"]
) -> Bool[np.ndarray, "n 10"]:
    """Which of the wanted attributes are seen, object order chosen in the image's favour.

    Two objects on each other's place lose the relation only; a missing object loses all its own.

    Returns:
        By the columns of `scenes.FIELDS`, of the scenes in canonical form; False where nothing is
        wanted.
    """
    wanted = canonical(wanted)
    seen = canonical(seen)
    present = wanted != ABSENT
    present[:, RELATION] = wanted[:, RELATION] != 0

    # The relation counts only if the objects are not swapped.
    straight = (wanted == seen) & present
    exchanged = seen.copy()
    exchanged[:, FIRST] = seen[:, SECOND]
    exchanged[:, SECOND] = seen[:, FIRST]
    swapped = (wanted == exchanged) & present
    swapped[:, RELATION] = False
    better = straight.sum(axis=1) >= swapped.sum(axis=1)
    return np.where(better[:, None], straight, swapped)


def share_shown(
    wanted: Int[np.ndarray, "n 10"], seen: Int[np.ndarray, "n 10"]
) -> Float[np.ndarray, " n"]:
    """Share of the wanted attributes that are seen, as `shown` counts them.

    A caption of one object has 5 attributes (size, texture, colour, shape, background), one of two
    objects has 10 (the relation is one).
    """
    return shown(wanted, seen).sum(axis=1) / np.where(wanted[:, RELATION] != 0, 10, 5)


def share_by_kind(
    wanted: Int[np.ndarray, "n 10"], seen: Int[np.ndarray, "n 10"]
) -> dict[str, float]:
    """Share of the wanted sizes, textures, colours, shapes, relations and backgrounds seen."""
    is_shown = shown(wanted, seen)
    fields = canonical(wanted)
    present = fields != ABSENT
    present[:, RELATION] = fields[:, RELATION] != 0
    return {
        kind: float(is_shown[:, columns][present[:, columns]].mean())
        for kind, columns in KINDS.items()
    }


def alignment(images: Float[Tensor, "n 3 64 64"], captions: list[str]) -> Float[Tensor, " n"]:
    """Share of each caption's attributes that its image shows, in [0, 1].

    Args:
        images: values in [0, 1].
        captions: one per image.

    Returns:
        One value per image; NaN where the caption is not in the grammar of `scenes`.

    Raises:
        ValueError: images of another size, or another number of captions.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    parsed = [scenes.parse(caption) for caption in captions]
    readable = [row is not None for row in parsed]
    out = torch.full((len(captions),), float("nan"))
    # The reader sees only the images that can be judged.
    if any(readable):
        wanted = np.stack([row for row in parsed if row is not None])
        out[readable] = torch.from_numpy(share_shown(wanted, read(images[readable]))).float()
    return out
