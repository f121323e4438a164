"""Where prompts and captioned images come from: an embedded model, a text file, an image folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ImageOps

from sdbench.models.emoji_sd import catalogue
from sdbench.models.mini_sd import scenes
from sdbench.records.files import inside, parsed, read_image
from sdbench.records.texts import lines_of, read_text

Captions = Callable[[np.random.Generator, int], Sequence[str]]
"""Draws this many prompts."""
Captioned = Callable[
    [np.random.Generator, int], tuple[Sequence[str], UInt8[np.ndarray, "n height width 3"]]
]
"""Draws this many prompts, with an image for each."""


def scene_captions(rng: np.random.Generator, count: int) -> list[str]:
    """Captions of mini-sd's training scenes."""
    return scenes.captions(scenes.sample(count, rng, split="train"))


def emoji_captions(rng: np.random.Generator, count: int) -> list[str]:
    """Captions of the drawings that emoji-sd was trained on."""
    return catalogue.captions(catalogue.sample(count, rng))


OWN_CAPTIONS = {"mini-sd": scene_captions, "emoji-sd": emoji_captions}
"""By embedded model."""


def captioned_scenes(
    rng: np.random.Generator, count: int
) -> tuple[list[str], UInt8[np.ndarray, "n height width 3"]]:
    """Training scenes as mini-sd learnt them, with clean captions."""
    drawn = scenes.sample(count, rng, split="train")
    return scenes.captions(drawn), scenes.draw(drawn, rng)


def drawn_from(prompts: Sequence[str]) -> Captions:
    """Draws from a list, each prompt with the same probability.

    Raises:
        ValueError: an empty list.
    """
    listed = list(prompts)
    if not listed:
        raise ValueError("there are no prompts to learn from")
    return lambda rng, count: [listed[index] for index in rng.integers(len(listed), size=count)]


@dataclass(frozen=True)
class ImageFolder:
    """Draws from listed images, cut to a square around their centre and scaled.

    Args:
        listed: path and caption of every image.
        side: pixels.
        digest: of the list.
    """

    listed: list[tuple[Path, str]]
    side: int
    digest: str

    def __call__(
        self, rng: np.random.Generator, count: int
    ) -> tuple[list[str], UInt8[np.ndarray, "count side side 3"]]:
        """Draw this many captions, with an image for each."""
        chosen = [self.listed[index] for index in rng.integers(len(self.listed), size=count)]
        images = [ImageOps.fit(read_image(path), (self.side, self.side)) for path, _ in chosen]
        return [text for _, text in chosen], np.stack([np.asarray(image) for image in images])

    def __str__(self) -> str:
        """What distinguishes it from another."""
        return f"images {self.digest}, {self.side} px"


def image_folder(folder: Path, *, side: int) -> ImageFolder:
    """Draws from a folder of images.

    Args:
        folder: its `metadata.jsonl` has a line with `file_name` and `text` for every image.
        side: pixels that the images are scaled to.

    Raises:
        ValueError: the list is missing or has another form, or one of its images is missing or
            outside the folder.
    """
    metadata = folder / "metadata.jsonl"
    try:
        content = read_text(metadata)
    except OSError as error:
        raise ValueError(f"'{metadata}' cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"'{metadata}' cannot be read: {error}") from None

    listed = []
    for number, line in enumerate(lines_of(content), 1):
        # Files that were put together may have marks within.
        text = line.removeprefix("\ufeff").strip()
        try:
            listed += [_entry(folder, parsed(json.loads, text))] if text else []
        except ValueError as error:
            raise ValueError(f"'{metadata}', line {number}: {error}") from None

    # Now, since a run would otherwise end when it draws the missing image.
    missing = [path for path, _ in listed if not path.is_file()]
    if missing or not listed:
        raise ValueError(
            f"'{metadata}' names {missing[0].name if missing else 'no image'}, which is not there"
        )
    return ImageFolder(listed, side, hashlib.sha256(content.encode()).hexdigest()[:16])


def _entry(folder: Path, entry: Any) -> tuple[Path, str]:
    """An image and its caption."""
    if not isinstance(entry, dict):
        raise ValueError(f"an image is named by an object, not by {entry!r}")
    for name in ("file_name", "text"):
        if not isinstance(entry.get(name), str):
            raise ValueError(f"{name} must be a text, not {entry.get(name)!r}")
    return inside(folder, entry["file_name"]), entry["text"]
