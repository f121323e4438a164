"""Distances between a study's images, variant by variant, and a set of reference images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdbench.instruments.distribution import frechet_difference, frechet_distance, image_features
from sdbench.instruments.kernel import Estimate, Reference, kernel_difference, kernel_distance
from sdbench.models.grammars import GRAMMARS
from sdbench.models.mini_sd import scenes
from sdbench.records.files import read_image, write_table
from sdbench.records.names import BASELINE
from sdbench.records.schema import frame
from sdbench.records.store import Results
from sdbench.study.images import read_images

FEWEST = 512
FLOORS = 8  # sets of references that are held against the others, at most
AT_ONCE = 256  # images that are open
SCENES = "mini-sd"  # whose images the reader knows
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
WARNING = (
    "A distance between distributions asks whether images look like the reference's, not whether "
    "they show their prompts: it rewards weak guidance. Read it with a metric that knows the "
    "prompt.\n"
    "Read the differences first. floor: as many references against the others (mean, lowest and "
    "highest). A Fréchet distance is far from 0 where nothing differs, so it has no interval of "
    "its own; where images have several seeds a prompt, a folder's floor is too low."
)

Features = Float[Tensor, "n width"]
Prompts = Int[Tensor, " n"]


def distances(
    results: Results, *, features: str, reference: Path | None = None, fewest: int = FEWEST
) -> pd.DataFrame:
    """The kernel and the Fréchet distance of every variant's images, written next to the results.

    Next to each stands what the references' own kind gives at the same number of images (the
    floor), and the difference to the baseline, paired by prompt.

    Args:
        results: of a study whose images are there; the first repeat counts.
        features: "reader" (mini-sd's) or "inception".
        reference: a folder with images of one size; drawn scenes for the reader's features where
            not given.
        fewest: images that a variant must have.

    Returns:
        The table `distances`.

    Raises:
        ValueError: videos, too few images, a variant that lacks some of the baseline's, no
            reference, or the reader's features of emoji-sd's images.
    """
    if "frames" in results.images:
        raise ValueError(f"{results.folder} holds videos: distances are between sets of images")
    model = results.study.get("model")
    if features == "reader" and model in GRAMMARS and model != SCENES:
        raise ValueError(
            f"the reader and its scenes are of {SCENES}, and {results.folder} has images of "
            f"{model}: give --features inception and --reference FOLDER"
        )
    images = _first_images(results, fewest)
    prompts = _prompts(images)

    # Features take most of the time, and serve both distances.
    expected = _references(features, reference, prompts)
    sets = {
        variant: _features(results.folder, rows["path"], features)
        for variant, rows in images.items()
    }

    rows = []
    for name, compared in (("kernel", _kernel), ("frechet", _frechet)):
        values, floors, size = compared(sets, prompts, expected)
        for variant, (value, difference) in values.items():
            about = {
                "variant": variant,
                "features": features,
                "distance": name,
                "images": len(sets[variant]),
                "reference_images": size,
            }
            own = _columns("value", value) | _columns("difference", difference)
            rows.append(about | own | _floor(floors))

    table = frame("distances", rows)
    write_table(results.folder, "distances", table)
    return table


def _first_images(results: Results, fewest: int) -> dict[str, pd.DataFrame]:
    """The images of the first repeat by variant, each in the order of its pairs.

    A pair of which any variant has a placeholder is left out of all.
    """
    images = _one_per_pair(results)
    pairs = pd.MultiIndex.from_frame(images[["prompt_id", "seed"]])
    images = images[~pairs.isin(pairs[images["flagged"].fillna(False).astype(bool)])]

    counts = images["variant"].value_counts()
    for variant in dict.fromkeys([BASELINE, *counts.index]):
        count = counts.get(variant, 0)
        if count < fewest:
            raise ValueError(
                f"a distance between distributions takes {fewest} images; {variant} has {count}"
            )
    return {
        str(variant): rows.sort_values(["prompt_id", "seed"])
        for variant, rows in images.groupby("variant", sort=False, observed=True)
    }


def _one_per_pair(results: Results) -> pd.DataFrame:
    """The first repeat's images; of several draws each pair has the next one's, in turn.

    All draws together would be a larger set than the others', to which distances are not equal.
    """
    images = results.images
    repeats = images["unit"].map(results.runs.set_index("unit")["repeat"])
    draws = images.groupby("variant")["draw"]
    place_of_draw = draws.rank("dense") - 1
    place_of_pair, _ = pd.MultiIndex.from_frame(images[["prompt_id", "seed"]]).factorize(sort=True)
    in_turn = place_of_draw == place_of_pair % draws.transform("nunique").clip(lower=1)
    return images[images["draw"].isna() & (repeats == 0) | in_turn.fillna(False)]


def _prompts(images: dict[str, pd.DataFrame]) -> Prompts:
    """The number of every image's prompt, from 0, which is the same for all variants."""
    pairs = {
        variant: list(zip(rows["prompt_id"], rows["seed"], strict=True))
        for variant, rows in images.items()
    }
    incomplete = [variant for variant, own in pairs.items() if own != pairs[BASELINE]]
    if incomplete:
        raise ValueError(
            f"'{incomplete[0]}' has not the same prompts and seeds as {BASELINE}: "
            "a call of it is missing"
        )
    numbers, _ = pd.factorize(pd.Series([prompt for prompt, _ in pairs[BASELINE]]))
    return torch.from_numpy(numbers)


@dataclass(frozen=True)
class _References:
    """Features of the reference images.

    Attributes:
        every: of all.
        rest: of those that were not held out.
        held: sets of the others, each of as many as a variant has images.
        prompts: the number of every image's prompt in a set that was held out.
    """

    every: Features
    rest: Features
    held: list[Features]
    prompts: Prompts


_Compared = tuple[dict[str, tuple[Estimate, Estimate]], list[float], int]
"""Of every variant the distance and its difference, the floors, the number of references."""


def _kernel(sets: dict[str, Features], prompts: Prompts, expected: _References) -> _Compared:
    """The kernel distance: it has no bias, so all references count."""
    reference = Reference.of(expected.every)
    rest = reference if expected.rest is expected.every else Reference.of(expected.rest)
    values = {
        variant: (
            kernel_distance(own, prompts, reference),
            kernel_difference(own, sets[BASELINE], prompts, reference),
        )
        for variant, own in sets.items()
    }
    floors = [kernel_distance(own, expected.prompts, rest).estimate for own in expected.held]
    return values, floors, len(expected.every)


def _frechet(sets: dict[str, Features], prompts: Prompts, expected: _References) -> _Compared:
    """The Fréchet distance: its bias hangs on both numbers of images, so the floor has the same."""
    values = {
        variant: (
            Estimate(frechet_distance(own, expected.rest), np.nan, np.nan),
            frechet_difference(own, sets[BASELINE], expected.rest, prompts),
        )
        for variant, own in sets.items()
    }
    floors = [frechet_distance(own, expected.rest) for own in expected.held]
    return values, floors, len(expected.rest)


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.estimate, f"{name}_lo": estimate.lo, f"{name}_hi": estimate.hi}


def _floor(floors: list[float]) -> dict[str, Any]:
    """Mean, lowest and highest of the distances of references; missing where there are too few."""
    if not floors:
        return {}
    return {"floor": np.mean(floors), "floor_lo": min(floors), "floor_hi": max(floors)}


def _references(kind: str, folder: Path | None, prompts: Prompts) -> _References:
    """The images in a folder, or drawn scenes without one."""
    if folder is None:
        if kind != "reader":
            raise ValueError("a folder with reference images is needed")
        return _scenes(prompts)

    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"'{folder}' holds no images")
    if len({read_image(path).size for path in paths}) > 1:
        raise ValueError(f"the images in '{folder}' are not of one size")
    every = _features(folder, [path.name for path in paths], kind)

    # At least half of them stay the reference.
    size = len(prompts)
    sets = min(FLOORS, len(every) // (2 * size))
    order = torch.from_numpy(np.random.default_rng(11).permutation(len(every)))
    held = [every[part] for part in order[: sets * size].split(size)] if sets else []
    rest = every[order[sets * size :]] if sets else every
    return _References(every, rest, held, torch.arange(size))


def _scenes(prompts: Prompts) -> _References:
    """Drawn scenes; those that are held out have as many captions, each as often, as a variant."""
    drawn = _drawn_references()
    rng = np.random.default_rng(12)
    held = []
    for _ in range(FLOORS):
        captions = scenes.sample(int(prompts.max()) + 1, rng, split="test")
        held.append(_drawn(captions[prompts.numpy()], rng))
    return _References(drawn, drawn, held, prompts)


@cache
def _drawn_references() -> Features:
    """The same scenes for every study, once per process."""
    rng = np.random.default_rng(11)
    return _drawn(scenes.sample(4 * FEWEST, rng, split="test"), rng)


def _drawn(rows: Int[np.ndarray, "n 10"], rng: np.random.Generator) -> Features:
    pixels = torch.from_numpy(scenes.draw(rows, rng)).permute(0, 3, 1, 2)
    return image_features(pixels.float() / 255, "reader")


def _features(folder: Path, paths: Iterable[str], kind: str) -> Features:
    """The features of images by their paths in a folder, some at a time."""
    names = list(paths)
    chunks = [names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)]
    return torch.cat([image_features(read_images(folder, chunk), kind) for chunk in chunks])
