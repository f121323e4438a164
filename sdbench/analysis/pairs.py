"""What a metric of (prompt, seed) pairs says of a variant, and of two: mean, median, shares.

A few images that became others can decide a mean, so the median and the share of changed images
stand beside it. All intervals are clustered by prompt; `stats.py` has their formulas.
Of a variant with several draws, intervals of means and shares are clustered by mask, too; that of
the median is of these masks.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sdbench.analysis.draws import over_draws
from sdbench.analysis.stats import (
    HALF,
    Interval,
    bounded_mean,
    median_interval,
    share_interval,
    sign_interval,
    spread,
)
from sdbench.records.metrics import MANY, scale_of

IDENTICAL = "identical"
UNDECIDED = "undecided"
NEARER = ("nearer", "farther")
"""Words of a metric that compares with a reference."""
BETTER = ("better", "worse")


def pair_interval(
    values: "pd.Series[float]",
    metric: str,
    *,
    difference: bool = False,
    images: "pd.Series[float] | None" = None,
) -> Interval:
    """Mean of a metric over pairs, whose index has the level `prompt_id`.

    Whether there is an interval depends on the metric and the number of prompts alone: from 64
    prompts on, for values of `alignment` from 6 (for its differences from 64, too), and never
    without a range. It lies within the range.

    Args:
        values: of the pairs; NaN where a pair has none.
        metric: which one it is.
        difference: whether the values are differences of two values of the metric, pair by pair.
        images: one value per image, where a pair has several, with the level `draw` in the index:
            the interval is then clustered by mask, too.
    """
    measured = values.dropna()
    scale = scale_of(metric)
    bounds = scale.differences if difference else scale.bounds
    fewest = MANY if difference else scale.prompts
    mean = bounded_mean(measured, _prompts(measured), bounds=bounds, fewest=fewest)
    return mean if images is None else _over_masks(mean, images, bounds)


def pair_median(values: "pd.Series[float]") -> Interval:
    """Median over pairs, whose index has the level `prompt_id`."""
    measured = values.dropna()
    return median_interval(measured, _prompts(measured))


def changed_share(values: "pd.Series[float]", metric: str) -> Interval:
    """Share of the images that became others: those worse than the metric's stated threshold.

    All of it is NaN for a metric without a threshold.
    """
    measured = values.dropna()
    changed = _is_changed(measured, metric)
    if changed is None:
        return Interval(np.nan, np.nan, np.nan)
    return _over_masks(share_interval(changed, _prompts(measured)), changed.astype(float), (0, 1))


def metric_levels(values: "pd.Series[float]", metric: str) -> dict[str, float]:
    """The `mean` of a metric, its `median`, and the share `changed` where it has a threshold."""
    measured = values.dropna()
    levels = {"mean": float(measured.mean()), "median": float(measured.median())}
    changed = _is_changed(measured, metric)
    return levels if changed is None else levels | {"changed": float(changed.mean())}


def metric_columns(
    values: "pd.Series[float]", metric: str, *, images: "pd.Series[float] | None" = None
) -> dict[str, float]:
    """All that a table says of a metric.

    Args:
        values: one per pair.
        metric: its name.
        images: one per image, where a pair has several, with the level `draw` in the index. The
            median and the share are of these; the interval of the mean is clustered by mask, too.

    Returns:
        The metric (its mean), `_median`, and `_changed` where the metric has a threshold; each with
        `_lo` and `_hi` behind it.
    """
    single = values if images is None else images
    row = spread(metric, pair_interval(values, metric, images=images))
    row |= spread(f"{metric}_median", pair_median(single))
    if scale_of(metric).changed is not None:
        row |= spread(f"{metric}_changed", changed_share(single, metric))
    return row


class Paired(NamedTuple):
    """What pairs say of two variants.

    Attributes:
        mean: of the differences; below 0 the first is better.
        better: share of the pairs in which the first is better, among those that differ.
        verdict: in words.
    """

    mean: Interval
    better: Interval
    verdict: str


def paired_verdict(
    difference: "pd.Series[float]",
    metric: str,
    *,
    words: tuple[str, str] = BETTER,
    images: "pd.Series[float] | None" = None,
) -> Paired:
    """Whether the first of two variants is better than the second, pair by pair.

    It is where mean and most images agree: the interval of the mean difference is clear of 0, and
    that of the share of pairs in which it is better is clear of one half. Where only one of them
    is clear, or they contradict each other, the words say so.

    Args:
        difference: of the first from the second in a loss (lower is better), with the level
            `prompt_id` in the index.
        metric: that the loss is, or is less 0.
        words: for the first being better, and for being worse.
        images: the differences by image, as `pair_interval` takes them.
    """
    measured = difference.dropna()
    mean = pair_interval(measured, metric, difference=True, images=images)
    better = sign_interval(measured, _prompts(measured))
    if len(measured) and not measured.any():
        return Paired(mean, better, IDENTICAL)
    return Paired(mean, better, _verdict(mean, better, words))


def _verdict(mean: Interval, better: Interval, words: tuple[str, str]) -> str:
    most = _side(better.lo > HALF, better.hi < HALF)
    average = _side(mean.hi < 0, mean.lo > 0)
    if most is None:
        return UNDECIDED if average is None else f"{words[average]} by the mean alone"
    if average == most:
        return words[most]

    # The mean lies on the other side, where few images are decided by much.
    contradicts = mean.estimate > 0 if most == 0 else mean.estimate < 0
    in_most = f"{words[most]} in most images"
    return f"{in_most}, {words[1 - most]} in a few" if contradicts else in_most


def _over_masks(
    mean: Interval, images: "pd.Series[float]", bounds: tuple[float, float]
) -> Interval:
    """An interval over prompts, clustered by mask, too, where images are of draws."""
    return over_draws(mean, images, bounds) if "draw" in images.index.names else mean


def _is_changed(values: "pd.Series[float]", metric: str) -> "pd.Series[bool] | None":
    """Which images became others; None for a metric without a threshold."""
    scale = scale_of(metric)
    if scale.changed is None:
        return None
    return values < scale.changed if scale.higher_is_better else values > scale.changed


def _side(better: bool, worse: bool) -> int | None:
    if better:
        return 0
    return 1 if worse else None


def _prompts(values: "pd.Series[float]") -> NDArray[np.intp]:
    """The number of each pair's prompt, which is its cluster, whatever the order of the pairs."""
    numbers, _ = pd.factorize(values.index.get_level_values("prompt_id"), sort=True)
    return numbers
