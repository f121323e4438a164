"""Which variants no other beats in time and quality at once, by tests of every two."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sdbench.analysis.paired_tests import DRAWS, LEVEL, clear_tests, slower_tests
from sdbench.analysis.timing import holm

EFFICIENT = "efficient"
BEATEN = "beaten"
OPEN = "open"
UNTIMED = "untimed"
"""Of a variant that has no time of its own, so that nothing is tested of it."""
TOLERANCE = 0.03  # of time: a rival that takes no more than this longer is as fast

Array = NDArray[np.float64]


def dominance(
    logs: pd.DataFrame,
    values: pd.DataFrame,
    *,
    higher_is_better: bool,
    most: bool,
    reference: str | None = None,
    masks: Array | None = None,
    level: float = LEVEL,
) -> pd.DataFrame:
    """What tests say of every variant against all others.

    A variant is *efficient* where every rival is shown to be slower or worse. Each rival is allowed
    two tests, so the smaller p-value counts twice; the rival that is least clear decides; and the
    variants are corrected for by Holm. So at most 5 % of tables hold a variant here that another
    beats. A variant is *beaten* where a rival is shown to be better, and shown to take no more than
    3 % longer; or, where a metric of fidelity (`most`) is equal in every pair, as of the same
    images, to be faster. All ordered pairs are corrected for by Holm. What is neither is *open*:
    more repeats or pairs would tell.

    Args:
        logs: logarithms of times, one row per repeat, one column per variant.
        values: of the metric, one row per pair with the level `prompt_id`, the same columns.
        higher_is_better: the metric's direction.
        most: whether "better" takes most pairs, besides the mean: of a metric that compares images.
        reference: the variant that the metric compares with, if it does: what differs from it
            anywhere is worse, and needs no test.
        masks: as `mask_tests` returns them: what must be clear over masks as well.
        level: of each of the two families of tests.

    Returns:
        By variant: `verdict`; `rival`, which beats it or is least told apart from it, empty for
        what is efficient; `p`, corrected, of the verdict (of being efficient where it is open).
    """
    names = list(values.columns)
    loss = _losses(values.to_numpy(dtype=float), higher_is_better=higher_is_better)
    times = logs.reindex(columns=names).to_numpy(dtype=float)
    slower = slower_tests(times)
    as_slow = slower_tests(times, tolerance=TOLERANCE)
    clusters = values.index.get_level_values("prompt_id").astype(str)
    worse, same = _worse(loss, np.asarray(clusters), most=most)
    if masks is not None:
        worse = np.maximum(worse, masks.T if higher_is_better else masks)
    worse[~same & (np.array(names) == reference)] = 0

    # Efficient: whatever the rival, it is slower or worse.
    apart = np.minimum(1, 2 * np.minimum(slower, worse)).T
    np.fill_diagonal(apart, 0)
    shown = holm({(EFFICIENT, name): p for name, p in zip(names, apart.max(1), strict=True)})

    # Beaten: a rival is better, and as fast; or the same, and faster.
    lost = np.where(same, slower, np.maximum(as_slow, worse))
    np.fill_diagonal(lost, np.nan)
    corrected = holm(
        {(one, other): lost[i, j] for i, one in enumerate(names) for j, other in enumerate(names)}
    )

    # Of several that beat it, the best is named.
    best = [names[place] for place in np.argsort(np.nanmean(loss, axis=0), kind="stable")]
    rows = []
    for name, p_of_rivals in zip(names, apart, strict=True):
        p = shown[EFFICIENT, name]
        beating = {other: corrected[name, other] for other in best if other != name}
        least_clear = names[int(p_of_rivals.argmax())]
        rows.append(_verdict(p, beating, least_clear, level))
    return pd.DataFrame(rows, columns=["verdict", "rival", "p"], index=pd.Index(names))


def _verdict(
    p: float, beating: dict[str, float], least_clear: str, level: float
) -> tuple[str, str, float]:
    """What is shown of a variant, its rival and the p-value, from those of all tests."""
    if p < level:
        return EFFICIENT, "", p
    for rival, of_rival in beating.items():
        if of_rival < level:
            return BEATEN, rival, of_rival
    return OPEN, least_clear, p


def _losses(values: Array, *, higher_is_better: bool) -> Array:
    """The metric where lower is better; what is perfect is a little better than all else."""
    loss = -values if higher_is_better else values
    finite = loss[np.isfinite(loss)]
    if not len(finite):
        return np.where(np.isfinite(loss), loss, 0)
    return np.where(np.isneginf(loss), finite.min() - np.ptp(finite) / 100, loss)


def _worse(
    loss: Array, clusters: NDArray[np.str_], *, most: bool
) -> tuple[Array, NDArray[np.bool_]]:
    """p-values that the row's variant is worse than the column's, and where both are the same."""
    count = loss.shape[1]
    first, second = np.triu_indices(count, 1)
    differences = loss[:, first] - loss[:, second]

    # Holm multiplies the least of them, which is 1 / draws, by the number of ordered pairs.
    draws = max(DRAWS, math.ceil(2 / LEVEL) * count * (count - 1))
    p = clear_tests(differences, clusters, most=most, draws=draws)
    worse = np.ones((count, count))
    worse[first, second] = p.above
    worse[second, first] = p.below

    same = np.zeros((count, count), bool)
    # A share of attributes is often equal for images that differ, and no pair may be shared.
    alike = (np.nan_to_num(differences) == 0).all(axis=0) & ~np.isnan(differences).all(axis=0)
    alike &= most
    same[first, second] = same[second, first] = alike
    return worse, same
