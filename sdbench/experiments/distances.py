"""Distances between a study's images, variant by variant, and a set of reference images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdbench.analysis.stats import jackknife
from sdbench.instruments.distribution import frechet_distance, image_features, kernel_distance
from sdbench.models.mini_sd import scenes
from sdbench.records.files import read_image, write_table
from sdbench.records.names import BASELINE
from sdbench.records.schema import frame
from sdbench.records.store import Results
from sdbench.study.images import read_images

GROUPS = 20
FEWEST = 512
AT_ONCE = 256  # images that are open
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

Distance = Callable[[Float[Tensor, "n width"], Float[Tensor, "m width"]], float]
KINDS: dict[str, Distance] = {"frechet": frechet_distance, "kernel": kernel_distance}
WARNING = (
    "A distance between distributions asks whether images look like the reference's, not whether "
    "they show their prompts: it rewards weak guidance. Read it with a metric that knows the "
    "prompt."
)


def distances(
    results: Results, *, features: str, reference: Path | None = None, fewest: int = FEWEST
) -> pd.DataFrame:
    """The Fréchet and the kernel distance of every variant's images, written next to the results.

    The 95 % intervals are by leaving out one of up to 20 groups of prompts at a time. The groups
    are the same for every variant, so the difference to the baseline is paired.

    Args:
        results: of a study whose images are there; the first repeat counts.
        features: "reader" (mini-sd's) or "inception".
        reference: a folder with images of one size; drawn scenes for the reader's features where
            not given.
        fewest: images that a variant must have.

    Returns:
        The table `distances`.

    Raises:
        ValueError: too few images, a variant that lacks some of the baseline's, or no reference.
    """
    images = _first_images(results, fewest)
    groups = _groups(images)

    # Features take most of the time, and serve both distances.
    expected = _reference(features, reference)
    sets = {
        variant: _features(results.folder, rows["path"], features)
        for variant, rows in images.items()
    }

    rows = []
    for name, distance in KINDS.items():
        measured = {
            variant: _measured(distance, own, expected, groups) for variant, own in sets.items()
        }

        for variant, values in measured.items():
            about = {
                "variant": variant,
                "features": features,
                "distance": name,
                "images": len(sets[variant]),
                "reference_images": len(expected),
            }
            rows.append(about | _intervals(values, measured[BASELINE]))

    table = frame("distances", rows)
    write_table(results.folder, "distances", table)
    return table


def _first_images(results: Results, fewest: int) -> dict[str, pd.DataFrame]:
    """The images of the first repeat by variant, each in the order of its pairs.

    A pair of which any variant has a placeholder is left out of all.
    """
    repeats = results.images["unit"].map(results.runs.set_index("unit")["repeat"])
    images = results.images[repeats == 0]
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


def _groups(images: dict[str, pd.DataFrame]) -> Int[Tensor, " n"]:
    """The group of every image's prompt, which is the same for all variants."""
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

    # A prompt's images of several seeds leave together: they are not independent.
    prompts = sorted({prompt for prompt, _ in pairs[BASELINE]})
    count = min(GROUPS, len(prompts))
    group_of = {prompt: index % count for index, prompt in enumerate(prompts)}
    return torch.tensor([group_of[prompt] for prompt, _ in pairs[BASELINE]])


class _Measured(NamedTuple):
    """A distance of all images, and of all but one group at a time."""

    value: float
    without: Float[np.ndarray, " groups"]


def _measured(
    distance: Distance,
    own: Float[Tensor, "n width"],
    expected: Float[Tensor, "m width"],
    groups: Int[Tensor, " n"],
) -> _Measured:
    count = int(groups.max()) + 1
    without = [distance(own[groups != group], expected) for group in range(count)]
    return _Measured(distance(own, expected), np.array(without))


def _intervals(measured: _Measured, baseline: _Measured) -> dict[str, Any]:
    """The distance, and its difference to the baseline's, with their intervals."""
    own = jackknife(measured.value, measured.without)
    difference = jackknife(measured.value - baseline.value, measured.without - baseline.without)
    return {
        "value": measured.value,
        "value_lo": own.lo,
        "value_hi": own.hi,
        "difference": difference.estimate,
        "difference_lo": difference.lo,
        "difference_hi": difference.hi,
    }


def _reference(features: str, folder: Path | None) -> Float[Tensor, "n width"]:
    """The features of the images in a folder, or of drawn scenes without one."""
    if folder is None:
        if features != "reader":
            raise ValueError("a folder with reference images is needed")
        rng = np.random.default_rng(11)
        drawn = scenes.draw(scenes.sample(4 * FEWEST, rng, split="test"), rng)
        return image_features(torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255, features)

    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"'{folder}' holds no images")
    if len({read_image(path).size for path in paths}) > 1:
        raise ValueError(f"the images in '{folder}' are not of one size")
    return _features(folder, [path.name for path in paths], features)


def _features(folder: Path, paths: Iterable[str], kind: str) -> Float[Tensor, "n width"]:
    """The features of images by their paths in a folder, some at a time."""
    names = list(paths)
    chunks = [names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)]
    return torch.cat([image_features(read_images(folder, chunk), kind) for chunk in chunks])
