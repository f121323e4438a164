"""Estimates with intervals, on vectors. What is paired with what is decided in `tables.py`.

Too few samples give the estimate with a missing interval (NaN), never a narrow one.
"""

from bisect import bisect_left
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import bdtrik, betaincinv, ndtri, stdtrit

MIN_PAIRS = 6
MIN_CLUSTERS = 6
HALF = 0.5
ROUNDING = 1e-12  # by which a mean of equal values may miss them


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval; NaN where there are too few samples."""

    estimate: float
    lo: float
    hi: float

    def negated(self) -> "Interval":
        """The interval of minus the figure."""
        return Interval(-self.estimate, -self.hi, -self.lo)


def spread(name: str, interval: Interval) -> dict[str, float]:
    """An interval as the three columns of a table."""
    return {name: interval.estimate, f"{name}_lo": interval.lo, f"{name}_hi": interval.hi}


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


def bounded_mean(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    bounds: tuple[float, float],
    level: float = 0.95,
    fewest: int = MIN_CLUSTERS,
) -> Interval:
    """Mean of values that come in clusters and lie in a known range, with Gaffke's interval.

    The bounds of a mean are the quantiles of the mean of the clusters and of one more at the end of
    the range, weighted by exponential variates. So what was not seen, such as a rare image that
    became another one, has its place in the interval. Nothing is assumed of the distribution. For
    values of 0 and 1 it is Clopper and Pearson's interval. The quantiles are taken by a saddlepoint
    approximation instead of by resampling. Its error is below 0.001 in probability.

    Where clusters differ in size, their sums are linearised about the mean of all values.

    Args:
        values: one per (prompt, seed) pair.
        clusters: what each value belongs to (its prompt).
        bounds: the least and the largest value that there can be; a value beyond widens them.
        level: coverage of the interval, at least.
        fewest: clusters that have an interval.

    Returns:
        The interval, within the range. Its ends are NaN below the fewest clusters, and where a
        bound or a value is infinite. Nothing else of the values decides whether there is one.

    Raises:
        ValueError: the vectors differ in length or a value is NaN.

    Source: Gaffke 2005, Three test statistics for a nonparametric one-sided hypothesis on the mean;
        Learned-Miller and Thomas 2019, arXiv 1905.06208; Barndorff-Nielsen 1986, Biometrika 73.
    """
    numbers, names, labels = _clustered(values, clusters)
    estimate = float(numbers.mean()) if len(numbers) else np.nan
    ends = (*bounds, estimate)
    if len(names) < max(fewest, MIN_CLUSTERS) or not np.isfinite(ends).all():
        return Interval(estimate, np.nan, np.nan)

    sizes = np.bincount(labels)
    deviations = np.bincount(labels, weights=numbers - estimate) / sizes.mean()
    least = min(bounds[0], float(numbers.min()))
    most = max(bounds[1], float(numbers.max()))
    lo = estimate - _gaffke(-deviations, estimate - least, level)
    hi = estimate + _gaffke(deviations, most - estimate, level)
    return Interval(estimate, max(lo, least), min(hi, most))


def share_interval(flags: ArrayLike, clusters: ArrayLike, *, level: float = 0.95) -> Interval:
    """Share of the values that are true, with an exact interval.

    Of one value per cluster it is Clopper and Pearson's. Several values of a cluster (the seeds of
    a prompt) are not independent, but their share is one number in [0, 1]; its mean over clusters
    has the interval of `bounded_mean`.

    Args:
        flags: one per (prompt, seed) pair.
        clusters: what each flag belongs to (its prompt).
        level: coverage of the interval, at least.

    Returns:
        The interval; its ends are NaN below 6 clusters.

    Raises:
        ValueError: the vectors differ in length.

    Source: Clopper and Pearson 1934.
    """
    numbers, names, _ = _clustered(flags, clusters)
    if len(names) < len(numbers) or len(names) < MIN_CLUSTERS:
        return bounded_mean(numbers, clusters, bounds=(0, 1), level=level)

    trues, falses = int(numbers.sum()), int((1 - numbers).sum())
    lo = betaincinv(trues, falses + 1, (1 - level) / 2) if trues else 0.0
    hi = betaincinv(trues + 1, falses, (1 + level) / 2) if falses else 1.0
    return Interval(trues / len(numbers), float(lo), float(hi))


def median_interval(values: ArrayLike, clusters: ArrayLike, *, level: float = 0.95) -> Interval:
    """Median of values that come in clusters, with an exact interval between two of the values.

    Of one value per cluster the ends are order statistics. Several values of a cluster are not
    independent; then the interval holds every value of which the data do not deny, by
    `share_interval`, that half of all values lie on either side.

    Args:
        values: one per (prompt, seed) pair; infinite ones count.
        clusters: what each value belongs to (its prompt).
        level: coverage of the interval, at least.

    Returns:
        The interval; its ends are NaN below 6 clusters.

    Raises:
        ValueError: the vectors differ in length or a value is NaN.

    Source: David and Nagaraja 2003, Order Statistics, section 7.1.
    """
    numbers, names, labels = _clustered(values, clusters)
    estimate = float(np.median(numbers)) if len(numbers) else np.nan
    if len(names) < MIN_CLUSTERS:
        return Interval(estimate, np.nan, np.nan)
    ordered = np.sort(numbers)
    if len(names) == len(numbers):
        rank = int(bdtrik((1 - level) / 2, len(ordered), 0.5)) + 1  # 1 is the least
        return Interval(estimate, float(ordered[rank - 1]), float(ordered[-rank]))

    lo = _median_end(numbers, labels, level)
    return Interval(estimate, lo, -_median_end(-numbers, labels, level))


def sign_interval(values: ArrayLike, clusters: ArrayLike, *, level: float = 0.95) -> Interval:
    """Share of the differences below 0 among those that are not 0, with its exact interval.

    An interval that is clear of one half is the two-sided sign test, of clusters where these have
    several values.

    Args:
        values: differences, one per (prompt, seed) pair.
        clusters: what each difference belongs to (its prompt).
        level: coverage of the interval, at least.

    Returns:
        The interval; NaN where nothing differs, its ends below 6 clusters with a difference.
    """
    numbers, _, labels = _clustered(values, clusters)
    differs = numbers != 0
    if not differs.any():
        return Interval(np.nan, np.nan, np.nan)
    return share_interval(numbers[differs] < 0, labels[differs], level=level)


def _t_quantile(level: float, freedom: int) -> float:
    return float(stdtrit(freedom, (1 + level) / 2))


def _clustered(
    values: ArrayLike, clusters: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.generic], NDArray[np.int64]]:
    """Values as numbers, the names of their clusters, and the place of each value's in these."""
    numbers = np.asarray(values, dtype=float)
    groups = np.asarray(clusters)
    if numbers.shape != groups.shape or numbers.ndim != 1:
        raise ValueError(
            f"expected two vectors of equal length, got shapes {numbers.shape} and {groups.shape}"
        )
    if np.isnan(numbers).any():
        raise ValueError("expected values without NaN")
    names, labels = np.unique(groups, return_inverse=True)
    return numbers, names, labels


def _median_end(numbers: NDArray[np.float64], labels: NDArray[np.int64], level: float) -> float:
    """The least value up to which there may be half of all values."""
    distinct = np.unique(numbers)
    sizes = np.bincount(labels)

    def may_be_half(place: int) -> bool:
        within = numbers <= distinct[place]
        share = float(within.mean())
        deviations = np.bincount(labels, weights=within - share) / sizes.mean()
        return share + _gaffke(deviations, 1 - share, level) >= HALF

    return float(distinct[bisect_left(range(len(distinct)), True, key=may_be_half)])


def _gaffke(deviations: NDArray[np.float64], room: float, level: float) -> float:
    """How far above the estimate the upper end lies.

    Args:
        deviations: of the clusters' means from the estimate.
        room: from the estimate to the largest value that there can be.
        level: coverage of the interval.

    The end is u where the sum of (x - u) E over all x, with E exponential, is above 0 with
    probability (1 - level) / 2. Of the saddlepoint s, u and tau = s / (1 + s u) each follows from
    tau alone.
    """
    # All values at the end leave no room but that of rounding.
    x = np.append(deviations, room)
    if x.max() <= ROUNDING:
        return 0.0
    target = float(ndtri((1 + level) / 2))

    def missing(tau: float) -> float:
        return float(gaffke_end(x, tau)[1]) - target

    # Close to 0 both square roots are rounding, at its other end u is the largest value.
    first, last = gaffke_bracket(x)
    tau = brentq(missing, first, last, xtol=1e-9 * last, rtol=1e-9)
    return float(gaffke_end(x, tau)[0])


def gaffke_end(
    x: NDArray[np.float64], tau: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A bound of Gaffke's interval, and how sure it is.

    Args:
        x: deviations of the clusters' means from the estimate and the room above it, along the last
            axis; other axes are samples.
        tau: one per sample, above 0 and below 1 / max(x).

    Returns:
        How far above the estimate the bound lies, and the normal quantile of the probability that
        the mean is below it. Both grow with `tau`.

    Source: Barndorff-Nielsen 1986, Biometrika 73.
    """
    tau = np.asarray(tau)
    weights = 1 / (1 - tau[..., None] * x)
    u = (x * weights).sum(-1) / weights.sum(-1)
    s = tau / (1 - tau * u)

    above = x - u[..., None]
    factors = 1 - s[..., None] * above
    root = np.sqrt(2 * np.log(factors).sum(-1))
    slope = s * np.sqrt(((above / factors) ** 2).sum(-1))
    return u, root + np.log(slope / root) / root


def gaffke_bracket(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the largest `tau` of `gaffke_end` between which bounds are sought."""
    last = (1 - 1e-9) / x.max(-1)
    return np.minimum(0.1 / np.sqrt((x**2).sum(-1)), last / 2), last
