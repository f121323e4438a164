"""The mean of a metric over several draws of a variant: its interval is clustered by mask, too.

The masks of `random:50%@0..7` are a sample of all masks, as the prompts are of all prompts.
"""

import math

import pandas as pd
from scipy.special import stdtrit

from sdbench.analysis.stats import Interval


def over_draws(
    mean: Interval, images: "pd.Series[float]", bounds: tuple[float, float], *, level: float = 0.95
) -> Interval:
    """The interval of a mean over prompts, widened by what other masks would have changed.

    The error of the mean is the sum of one over prompts and one over masks. These are independent,
    so what each adds to an end adds up in squares. That of the masks is Student's t times the
    standard error of a random effect in a crossed table. Draws are taken as independent. They are
    balanced over the steps, so they differ less than that, and the interval is rather too wide.

    Args:
        mean: over pairs, of all draws, with its interval over prompts.
        images: one value per image, with the levels `prompt_id` and `draw` in the index.
        bounds: the least and the largest value that there can be.
        level: coverage of the interval.

    Returns:
        The interval; a single draw leaves it as it is. Its ends are NaN where fewer than two
        prompts have all draws, since then nothing says what masks change.

    Source: Zou and Donner 2008, Statistics in Medicine 27 (ends of a sum from those of its parts);
        Searle, Casella and McCulloch 1992, Variance Components, chapter 4 (two-way crossed).
    """
    effect, draws = _error_of_masks(images)
    if draws < 2:
        return mean
    if math.isnan(effect):
        return Interval(mean.estimate, math.nan, math.nan)
    half = float(stdtrit(draws - 1, (1 + level) / 2)) * effect
    lo = mean.estimate - math.hypot(mean.estimate - mean.lo, half)
    hi = mean.estimate + math.hypot(mean.hi - mean.estimate, half)
    return Interval(mean.estimate, max(lo, bounds[0]), min(hi, bounds[1]))


def less(images: "pd.Series[float]", pairs: "pd.Series[float]") -> "pd.Series[float]":
    """The value of every image less that which a variant without draws has for its pair."""
    of_pairs = pd.MultiIndex.from_frame(images.index.to_frame()[pairs.index.names])
    return images - pairs.reindex(of_pairs).to_numpy()


def _error_of_masks(images: "pd.Series[float]") -> tuple[float, int]:
    """Standard error of the mean that is due to masks alone, and the number of draws."""
    cells = images.rename("value").dropna().reset_index()
    means = cells.pivot_table("value", index="prompt_id", columns="draw", observed=True)
    # A prompt that lacks a draw would move that draw's mean.
    table = means.dropna().to_numpy(dtype=float)
    prompts, draws = table.shape
    if prompts < 2 or draws < 2:
        return math.nan, draws

    residuals = table - table.mean(axis=1, keepdims=True)
    of_masks = residuals.mean(axis=0)
    residuals -= of_masks
    freedom = (prompts - 1) * (draws - 1)
    # The means of draws differ by what prompts do to each mask, too, which averages out.
    noise = float((residuals**2).sum()) / freedom / prompts
    effect = max(0.0, float(of_masks.var(ddof=1)) - noise)
    return math.sqrt(effect / draws), draws
