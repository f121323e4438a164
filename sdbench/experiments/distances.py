"""Distances between a study's images, variant by variant, and a set of reference images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
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
KINDS = {"frechet": frechet_distance, "kernel": kernel_distance}
WARNING = (
    "A distance between distributions asks whether images look like the reference's, not whether they show their "
    "prompts: it rewards weak guidance. Read it beside a metric that knows the prompt."
)


def distances(
    results: Results, *, features: str, reference: Path | None = None, fewest: int = FEWEST
) -> pd.DataFrame:
    """The Fréchet and the kernel distance of every variant's images, with 95 % intervals, written beside the results.

    Intervals are by leaving out one of up to 20 groups of prompts at a time, the same groups for every variant, so the
    difference to the baseline is paired.

    Args:
        results: of a study whose images are there; the first repeat counts.
        features: "reader" (mini-sd's) or "inception".
        reference: a folder with images of one size; drawn scenes for the reader's features where not given.
        fewest: images that a variant must have.

    Returns:
        The table `distances`.

    Raises:
        ValueError: too few images, a variant that lacks some of the baseline's, or no reference.
    """
    runs = results.runs.set_index("unit")
    images = results.images[results.images["unit"].map(runs["repeat"]) == 0]
    counts = images["variant"].value_counts()
    for variant in dict.fromkeys([BASELINE, *counts.index]):
        if counts.get(variant, 0) < fewest:
            count = counts.get(variant, 0)
            raise ValueError(
                f"a distance between distributions takes {fewest} images; {variant} has {count}"
            )
    expected = _reference(features, reference)
    sets: dict[str, Tensor] = {}
    for variant, part in images.groupby("variant", sort=False, observed=True):
        chunks = _chunks(list(part.sort_values(["prompt_id", "seed"])["path"]))
        sets[str(variant)] = torch.cat(
            [image_features(read_images(results.folder, chunk), features) for chunk in chunks]
        )
    pairs = {
        str(variant): _pairs(part) for variant, part in images.groupby("variant", observed=True)
    }
    incomplete = [variant for variant, found in pairs.items() if found != pairs[BASELINE]]
    if incomplete:
        raise ValueError(
            f"'{incomplete[0]}' has not the same prompts and seeds as {BASELINE}: a call of it is missing"
        )
    prompts = sorted({prompt for prompt, _ in pairs[BASELINE]})
    count = min(GROUPS, len(prompts))
    group_of = {prompt: index % count for index, prompt in enumerate(prompts)}
    groups = torch.tensor([group_of[prompt] for prompt, _ in pairs[BASELINE]])
    rows = []
    for name, distance in KINDS.items():
        values = {
            variant: (
                distance(found, expected),
                np.array([distance(found[groups != group], expected) for group in range(count)]),
            )
            for variant, found in sets.items()
        }
        for variant, (value, without) in values.items():
            known = {
                "variant": variant,
                "features": features,
                "distance": name,
                "images": len(sets[variant]),
            }
            row = known | {"reference_images": len(expected)}
            interval = jackknife(value, without)
            row |= {"value": value, "value_lo": interval.lo, "value_hi": interval.hi}
            difference = jackknife(value - values[BASELINE][0], without - values[BASELINE][1])
            rows.append(
                row
                | {
                    "difference": difference.estimate,
                    "difference_lo": difference.lo,
                    "difference_hi": difference.hi,
                }
            )
    table = frame("distances", rows)
    write_table(results.folder, "distances", table)
    return table


def _reference(features: str, folder: Path | None) -> Tensor:
    if folder is None:
        if features != "reader":
            raise ValueError("a folder with reference images is needed")
        rng = np.random.default_rng(11)
        drawn = scenes.draw(scenes.sample(4 * FEWEST, rng, split="test"), rng)
        return image_features(torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255, features)
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
    )
    if not paths:
        raise ValueError(f"'{folder}' holds no images")
    if len({read_image(path).size for path in paths}) > 1:
        raise ValueError(f"the images in '{folder}' are not of one size")
    return torch.cat(
        [
            image_features(read_images(folder, chunk), features)
            for chunk in _chunks([p.name for p in paths])
        ]
    )


def _pairs(images: pd.DataFrame) -> list[tuple[str, int]]:
    return sorted(zip(images["prompt_id"], images["seed"], strict=True))


def _chunks(paths: list[str], size: int = 256) -> list[list[str]]:
    return [paths[start : start + size] for start in range(0, len(paths), size)]
