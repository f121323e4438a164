"""Where prompts and captioned images come from: mini-sd's endless scenes, a text file, a folder of images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from sdbench.models.mini_sd import scenes

Captions = Callable[[np.random.Generator, int], Sequence[str]]
"""Draws this many prompts."""
Captioned = Callable[[np.random.Generator, int], tuple[Sequence[str], UInt8[np.ndarray, "n height width 3"]]]
"""Draws this many prompts, with an image for each."""


def scene_captions(rng: np.random.Generator, count: int) -> list[str]:
    """Captions of mini-sd's training scenes."""
    return scenes.captions(scenes.sample(count, rng, split="train"))


def captioned_scenes(rng: np.random.Generator, count: int) -> tuple[list[str], UInt8[np.ndarray, "n height width 3"]]:
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


def image_folder(folder: Path, *, side: int) -> Captioned:
    """Draws from a folder of images whose `metadata.jsonl` has a line with `file_name` and `text` for each of them.

    Images are cut to a square around their centre and scaled to `side` pixels.

    Raises:
        ValueError: the list is missing or has another form, or one of its images is missing.
    """
    listed = folder / "metadata.jsonl"
    try:
        lines = [json.loads(line) for line in listed.read_text().splitlines() if line.strip()]
        known = [(folder / line["file_name"], str(line["text"])) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{listed}' does not list images with their captions: {error!r}") from None
    missing = [path for path, _ in known if not path.is_file()]
    if missing or not known:
        raise ValueError(f"'{listed}' names {missing[0].name if missing else 'no image'}, which is not there")

    def draw(rng: np.random.Generator, count: int) -> tuple[list[str], UInt8[np.ndarray, "n height width 3"]]:
        chosen = [known[index] for index in rng.integers(len(known), size=count)]
        images = [ImageOps.fit(Image.open(path).convert("RGB"), (side, side)) for path, _ in chosen]
        return [text for _, text in chosen], np.stack([np.asarray(image) for image in images])

    return draw
