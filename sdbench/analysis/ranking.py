"""Variants in the order of a metric, and which differences between them are clear."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sdbench.analysis.known import liked_by
from sdbench.analysis.paired_tests import DRAWS, LEVEL, OneSided, clear_tests
from sdbench.analysis.pairs import metric_columns
from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.analysis.shared import mask_tests, metric_values
from sdbench.analysis.tables import image_means
from sdbench.analysis.timing import holm
from sdbench.records.store import Results


def ranking(
    results: Results, metric: str, *, higher_is_better: bool, level: float = LEVEL
) -> pd.DataFrame:
    """One row per variant, best first.

    Every two variants are compared pair by pair, by a sign-flip test of the mean difference,
    clustered by prompt. In a metric that compares with the baseline, most pairs have to agree with
    the mean (the sign test). The p-values are corrected for the number of comparisons by Holm: in
    at most 5 % of studies a difference seems clear that is none.

    Args:
        results: of a study.
        metric: a column of its images.
        higher_is_better: the metric's direction.
        level: of all comparisons together.

    Returns:
        `variant`; the metric (its mean) and what `metric_columns` sets beside it; `best_rank` (1
        plus the number that are clearly better), `worst_rank` (the number of variants less those
        clearly worse); `p`, corrected, against the next variant in the order; and, where the study
        has known answers, the metric's `_likes`, as in `summarise`.

    Raises:
        ValueError: no image has the metric.
    """
    values = metric_values(results, metric)
    sign = 1 if higher_is_better else -1
    order = list((sign * values.mean()).sort_values(ascending=False, kind="stable").index)

    first, second = np.triu_indices(len(order), 1)
    pairs = [(order[i], order[j]) for i, j in zip(first, second, strict=True)]
    above, below = _tests(results, metric, values[order], sign=sign, level=level)
    both = np.minimum(1, 2 * np.minimum(above, below))
    p = holm(dict(zip(pairs, both.tolist(), strict=True)))

    # For each variant, how many others are clearly better, and how many clearly worse.
    better = dict.fromkeys(order, 0)
    worse = dict.fromkeys(order, 0)
    for pair, up, down in zip(pairs, above, below, strict=True):
        if p[pair] < level:
            winner, loser = pair if up < down else pair[::-1]
            better[loser] += 1
            worse[winner] += 1

    images = image_means(results).set_index(["prompt_id", "seed", "draw"])
    rows = [
        {"variant": name}
        | metric_columns(
            values[name].dropna(),
            metric,
            images=images.loc[images["variant"] == name, metric].dropna(),
        )
        | {"best_rank": 1 + better[name], "worst_rank": len(order) - worse[name]}
        | {"p": p.get((name, following), np.nan)}
        for name, following in zip(order, [*order[1:], ""], strict=True)
    ]
    return pd.DataFrame(rows).assign(**liked_by(metric, results.known))


def _tests(
    results: Results, metric: str, values: pd.DataFrame, *, sign: int, level: float
) -> OneSided:
    """Of every two variants in the order of their columns: the sign times the metric is above."""
    numbers = sign * values.to_numpy()
    first, second = np.triu_indices(numbers.shape[1], 1)

    # Holm multiplies the least p-value, which is 2 / draws, by the number of comparisons.
    tests = clear_tests(
        numbers[:, first] - numbers[:, second],
        values.index.get_level_values("prompt_id").astype(str),
        most=metric not in WITHOUT_REFERENCE,
        draws=max(DRAWS, 4 * len(first) * round(1 / level)),
    )
    masks = mask_tests(results, metric, list(map(str, values)))
    if masks is None:
        return tests
    if sign < 0:
        masks = masks.T
    return OneSided(
        np.maximum(tests.above, masks[first, second]), np.maximum(tests.below, masks[second, first])
    )
