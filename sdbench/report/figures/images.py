"""The images of a study next to each other."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.records.files import inside, read_pixels
from sdbench.records.store import Results
from sdbench.report.figures.style import new_figure, variant_styles

STRIP = 3
"""Frames of a video that are drawn."""


def image_grid(results: Results, *, pairs: Sequence[tuple[str, int]]) -> Figure:
    """The images of some (prompt, seed) pairs: one row per pair, one column per variant.

    Of a variant with several draws it is the first one's. Of a video it is the first, the middle
    and the last frame, next to each other: the first alone is the same in all where a pipeline is
    given it.

    Args:
        results: a study whose images are stored; one that is missing leaves its place empty.
        pairs: `prompt_id` and `seed` of every row.

    Raises:
        ValueError: a pair is not in the study, or there are none.
    """
    # Where calls ran side by side, a later draw may stand before the first.
    in_order = results.images.sort_values("draw", kind="stable")
    images = in_order.drop_duplicates(["variant", "prompt_id", "seed"])
    by_pair = results.images.drop_duplicates(["prompt_id", "seed"]).set_index(["prompt_id", "seed"])
    prompts = by_pair["prompt"]
    unknown = [pair for pair in pairs if pair not in prompts.index]
    if unknown or not pairs:
        there = ", ".join(map(str, prompts.index))
        raise ValueError(f"no images of {unknown or 'no pairs'}; there are {there}")

    paths = images.set_index(["variant", "prompt_id", "seed"])["path"]
    variants = list(variant_styles(results.runs["variant"]))

    # A row is labelled at its left end, a column above its first image.
    wide = STRIP if "frames" in results.images else 1
    figure = new_figure(1.6 + 1.3 * wide * len(variants), 0.3 + 1.3 * len(pairs))
    grid = figure.subplots(len(pairs), len(variants), squeeze=False)
    for line, pair in zip(grid, pairs, strict=True):
        for axes, variant in zip(line, variants, strict=True):
            _show_image(axes, results.folder, paths.get((variant, *pair)))
        label = f"{textwrap.fill(prompts[pair], 22)}\nseed {pair[1]}"
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)

    for axes, variant in zip(grid[0], variants, strict=True):
        axes.set_title(textwrap.fill(variant, 16), fontsize=8)
    return figure


def _show_image(axes: Axes, folder: Path, path: str | None) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="0.8", linewidth=0.5)
    if path is None or pd.isna(path):
        axes.set_box_aspect(1)
        centre: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "no image", fontsize=7, color="0.5", **centre)
        return

    pixels = read_pixels(inside(folder, path))
    shown = _strip(pixels) if pixels.ndim == 4 else pixels
    # From 0 to 1; float64 would take twice the memory for the same picture.
    axes.imshow(shown / np.float32(255), interpolation="nearest")


def _strip(
    frames: UInt8[np.ndarray, "frames height width 3"],
) -> UInt8[np.ndarray, "height strip 3"]:
    """The first, the middle and the last frame from left to right, with a gap between them."""
    first, middle, last = frames[np.linspace(0, len(frames) - 1, STRIP).round().astype(int)]
    gap = np.full_like(first[:, : max(1, first.shape[1] // 32)], 255)
    return np.hstack([first, gap, middle, gap, last])
