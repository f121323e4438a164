"""Variants in the order of a metric, and which differences between them are clear."""

from __future__ import annotations

import pandas as pd

from sdbench.analysis.tables import pair_interval, pair_means, spread
from sdbench.records.store import Results


def ranking(results: Results, metric: str, *, higher_is_better: bool) -> pd.DataFrame:
    """One row per variant, best first.

    Two variants differ clearly where the 95 % interval of their paired difference, clustered by
    prompt, is clear of 0. Among 20 equal variants some pair will seem to: the ranges are for
    reading, not for testing.

    Args:
        results: of a study.
        metric: a column of its images.
        higher_is_better: the metric's direction.

    Returns:
        `variant`, the metric with `_lo` and `_hi`, `best_rank` (1 plus the number that are clearly
        better) and `worst_rank` (the number of variants less those clearly worse).

    Raises:
        ValueError: no image has the metric.
    """
    means = pair_means(results)
    if metric not in means or means[metric].isna().all():
        raise ValueError(f"no image of {results.folder} has {metric}")
    values = means.pivot_table(
        metric, index=["prompt_id", "seed"], columns="variant", observed=True
    ).dropna(axis=1, how="all")

    sign = 1 if higher_is_better else -1
    order = list((sign * values.mean()).sort_values(ascending=False).index)

    # For each variant, how many others are clearly better, and how many clearly worse.
    better = dict.fromkeys(order, 0)
    worse = dict.fromkeys(order, 0)
    for index, first in enumerate(order):
        for second in order[index + 1 :]:
            difference = (sign * (values[first] - values[second])).dropna()
            if len(difference) and pair_interval(difference).lo > 0:
                better[second] += 1
                worse[first] += 1

    rows = [
        {"variant": name}
        | spread(metric, pair_interval(values[name].dropna()))
        | {"best_rank": 1 + better[name], "worst_rank": len(order) - worse[name]}
        for name in order
    ]
    return pd.DataFrame(rows)
