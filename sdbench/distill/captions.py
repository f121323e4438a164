"""Where prompts and captioned images come from: mini-sd's endless scenes, a text file, a folder of images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ImageOps

from sdbench.models.mini_sd import scenes
from sdbench.records.files import inside, parsed, read_image

Captions = Callable[[np.random.Generator, int], Sequence[str]]
"""Draws this many prompts."""
Captioned = Callable[
    [np.random.Generator, int], tuple[Sequence[str], UInt8[np.ndarray, "n height width 3"]]
]
"""Draws this many prompts, with an image for each."""


def scene_captions(rng: np.random.Generator, count: int) -> list[str]:
    """Captions of mini-sd's training scenes."""
    return scenes.captions(scenes.sample(count, rng, split="train"))


def captioned_scenes(
    rng: np.random.Generator, count: int
) -> tuple[list[str], UInt8[np.ndarray, "n height width 3"]]:
    """Training scenes as mini-sd learnt them, with clean captions."""
    drawn = scenes.sample(count, rng, split="train")
    return scenes.captions(drawn), scenes.draw(drawn, rng)


def held_out_captions(count: int) -> list[str]:
    """Captions with objects that mini-sd never saw in training; always the same."""
    told = scenes.captions(scenes.sample(2 * count + 16, np.random.default_rng(6), split="test"))
    return list(dict.fromkeys(told))[:count]


def drawn_from(prompts: Sequence[str]) -> Captions:
    """Draws from a list, each as often as any other.

    Raises:
        ValueError: an empty list.
    """
    known = list(prompts)
    if not known:
        raise ValueError("there are no prompts to learn from")
    return lambda rng, count: [known[index] for index in rng.integers(len(known), size=count)]


@dataclass(frozen=True)
class ImageFolder:
    """Draws from listed images, cut to a square around their centre and scaled.

    Args:
        known: path and caption of every image.
        side: pixels.
        digest: of the list.
    """

    known: list[tuple[Path, str]]
    side: int
    digest: str

    def __call__(
        self, rng: np.random.Generator, count: int
    ) -> tuple[list[str], UInt8[np.ndarray, "count side side 3"]]:
        """Draw this many captions, with an image for each."""
        chosen = [self.known[index] for index in rng.integers(len(self.known), size=count)]
        images = [ImageOps.fit(read_image(path), (self.side, self.side)) for path, _ in chosen]
        return [text for _, text in chosen], np.stack([np.asarray(image) for image in images])

    def __str__(self) -> str:
        """What tells it from another."""
        return f"images {self.digest}, {self.side} px"


def image_folder(folder: Path, *, side: int) -> ImageFolder:
    """Draws from a folder of images whose `metadata.jsonl` has a line with `file_name` and `text` for each of them.

    Raises:
        ValueError: the list is missing or has another form, or one of its images is missing or out of the folder.
    """
    listed = folder / "metadata.jsonl"
    try:
        content = listed.read_text(encoding="utf-8")
        lines = [parsed(json.loads, line) for line in content.splitlines() if line.strip()]
        known = [(inside(folder, line["file_name"]), str(line["text"])) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"'{listed}' does not list images with their captions: {error!r}"
        ) from None
    missing = [path for path, _ in known if not path.is_file()]
    if missing or not known:
        raise ValueError(
            f"'{listed}' names {missing[0].name if missing else 'no image'}, which is not there"
        )
    return ImageFolder(known, side, hashlib.sha256(content.encode()).hexdigest()[:16])
