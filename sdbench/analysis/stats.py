"""Estimates with intervals, on vectors. What is paired with what is decided in `tables.py`.

Too few samples give the estimate with a missing interval (NaN), never a narrow one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

MIN_PAIRS = 6
MIN_CLUSTERS = 6
NORMAL_LIMIT = 10_000


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval; NaN where there are too few samples."""

    estimate: float
    lo: float
    hi: float


def ratio_interval(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Interval:
    """Geometric mean of the paired ratios a / b, with Student's t interval on their logarithms.

    Args:
        a: positive values, one per pair.
        b: positive values, one per pair.
        level: coverage of the interval.

    Returns:
        The interval; its ends are NaN below 6 pairs, and all of it is NaN without any.

    Raises:
        ValueError: the vectors differ in length or hold a value that is not positive and finite.
    """
    a = np.asarray(a, dtype=float)
    b = np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"expected two vectors of equal length, got shapes {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)).all():
        raise ValueError("expected positive, finite values")
    if not len(a):
        return Interval(np.nan, np.nan, np.nan)
    logs = np.log(a / b)
    centre = logs.mean()
    half = np.nan
    if len(logs) >= MIN_PAIRS:
        half = _t_quantile(level, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    return Interval(*(float(np.exp(end)) for end in (centre, centre - half, centre + half)))


def cluster_bootstrap(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of values that come in clusters, with the bootstrap-t interval over clusters.

    Whole clusters (prompts, each with its seeds) are drawn with replacement; every draw's mean is
    studentised by its own cluster-robust standard error, and the quantiles of that t replace
    Student's. By simulation at 8 clusters the 95 % interval covers 93 to 97 % for normal, uniform
    and mildly skewed values, where the percentile bootstrap covers 85 to 90 %; strong skew
    (log-normal, sigma 1) brings both down, to about 89 % and 78 %. Above 10^4 values the limit is
    used: the same standard error with Student's t on clusters - 1 degrees of freedom, which is the
    normal interval where there are many clusters and stays honest where there are few.

    Args:
        values: one per (prompt, seed) pair.
        clusters: what each value belongs to (its prompt).
        level: coverage of the interval.
        resamples: draws of the bootstrap.
        seed: seed of the draws.

    Returns:
        The interval. Its ends are NaN below 6 clusters; where all values are equal (that they will
        be is not known); where so few clusters differ that draws with next to no spread set the
        quantiles, so that an end lies further from the clusters' means than these lie apart; and
        where a value is infinite.

    Raises:
        ValueError: the vectors differ in length or a value is NaN.

    Source: Efron and Tibshirani 1993, section 12.5; Cameron, Gelbach and Miller 2008, section 2.
    """
    values = np.asarray(values, dtype=float)
    clusters = np.asarray(clusters)
    if values.shape != clusters.shape or values.ndim != 1:
        raise ValueError(
            f"expected two vectors of equal length, got shapes {values.shape} and {clusters.shape}"
        )
    if np.isnan(values).any():
        raise ValueError("expected values without NaN")
    estimate = float(values.mean()) if len(values) else np.nan
    names, labels, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    if len(names) < MIN_CLUSTERS or not np.isfinite(estimate) or np.ptp(values) == 0:
        return Interval(estimate, np.nan, np.nan)

    # Sums of deviations from the mean, per cluster: the numerators of every resampled mean.
    deviations = np.bincount(labels, weights=values - estimate).astype(float)
    error = float(_cluster_error(deviations, sizes))
    if len(values) > NORMAL_LIMIT:
        half = _t_quantile(level, len(names) - 1) * error
        return Interval(estimate, estimate - half, estimate + half)
    t = _resampled_t(deviations, sizes, error=error, resamples=resamples, seed=seed)

    # `lower` and `higher` keep an infinite t whole where linear interpolation would make NaN of it.
    top = np.quantile(t, (1 + level) / 2, method="higher")
    bottom = np.quantile(t, (1 - level) / 2, method="lower")
    if not np.isfinite([top, bottom]).all():
        return Interval(estimate, np.nan, np.nan)

    # An end that lies further out than the clusters do was set by draws without spread.
    lo = float(estimate - top * error)
    hi = float(estimate - bottom * error)
    means = estimate + deviations / sizes
    if lo < means.min() - np.ptp(means) or hi > means.max() + np.ptp(means):
        return Interval(estimate, np.nan, np.nan)
    return Interval(estimate, lo, hi)


def jackknife(estimate: float, without: ArrayLike, *, level: float = 0.95) -> Interval:
    """Interval of any smooth statistic from its values without one group of the data each.

    Args:
        estimate: the statistic of all data.
        without: its value without each group; groups of about equal size.
        level: coverage of the interval.

    Returns:
        The interval; its ends are NaN below 6 groups.

    Source: Efron and Tibshirani 1993, section 11.5; Student's t with groups - 1 degrees of freedom.
    """
    values = np.asarray(without, dtype=float)
    count = len(values)
    if count < MIN_CLUSTERS:
        return Interval(estimate, np.nan, np.nan)
    error = np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum())
    half = _t_quantile(level, count - 1) * float(error)
    return Interval(estimate, estimate - half, estimate + half)


def _t_quantile(level: float, freedom: int) -> float:
    return float(stdtrit(freedom, (1 + level) / 2))


def _cluster_error(
    deviations: NDArray[np.float64], sizes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Cluster-robust standard error of a mean; ... clusters, ... clusters => ..."""
    count = sizes.shape[-1]
    error: NDArray[np.float64] = np.sqrt(count / (count - 1) * (deviations**2).sum(-1)) / sizes.sum(
        -1
    )
    return error


def _resampled_t(
    deviations: NDArray[np.float64],
    sizes: NDArray[np.int64],
    *,
    error: float,
    resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Studentised shift of every resampled mean; infinite where a draw has no spread."""
    generator = np.random.default_rng(seed)
    count = len(sizes)
    block = max(1, 2**20 // count)  # bounds the memory, not the result
    shifts = []
    for start in range(0, resamples, block):
        drawn = generator.integers(count, size=(min(block, resamples - start), count))
        drawn_sizes = sizes[drawn]
        shift = deviations[drawn].sum(1) / drawn_sizes.sum(1)
        own = _cluster_error(deviations[drawn] - drawn_sizes * shift[:, None], drawn_sizes)
        spread = own > 1e-9 * error  # below is rounding
        studentised = shift / np.where(spread, own, 1)
        shifts.append(np.where(spread, studentised, np.copysign(np.inf, shift)))
    return np.concatenate(shifts)
