"""How well a distance between images foretells what people see: the psychometric curve.

The share of right answers over a distance x is 1/2 + (1/2 - lapse / 2) F(x), where F is Weibull's
curve: 0 where nothing differs, one half at the threshold, 1 far beyond it. A lapse is an answer
that has nothing to do with the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import chdtri, stdtrit
from scipy.stats import mannwhitneyu

from sdbench.analysis.perception.mixed import MIN_GROUPS

Array = NDArray[np.float64]

LAPSES = np.linspace(0, 0.1, 6)
SLOPES = np.geomspace(0.25, 8, 25)
THRESHOLDS = 241
REACH = np.log([0.1, 10.0])  # how far the threshold is sought below and above the distances
MIN_ANSWERS = 10
"""The fewest answers with a distance above 0 of which a curve is drawn."""


@dataclass(frozen=True)
class Curve:
    """A psychometric curve.

    Attributes:
        threshold: the distance that half notice, corrected for guessing; infinite or 0 where the
            answers set no bound to it.
        lo: lower end of its interval.
        hi: upper end of its interval.
        slope: Weibull's exponent.
        lapse: share of answers that have nothing to do with the images.
    """

    threshold: float
    lo: float
    hi: float
    slope: float
    lapse: float

    def __call__(self, distance: ArrayLike) -> Array:
        """The share that notices, corrected for guessing and for lapses."""
        return weibull(np.asarray(distance, dtype=float), self.threshold, self.slope)

    def right(self, distance: ArrayLike) -> Array:
        """The share of right answers."""
        found: Array = 0.5 + 0.5 * (1 - self.lapse) * self(distance)
        return found


def weibull(distance: Array, threshold: ArrayLike, slope: ArrayLike) -> Array:
    """Weibull's curve: 0 at 0, one half at the threshold."""
    with np.errstate(over="ignore"):
        found: Array = -np.expm1(-np.log(2) * (distance / np.asarray(threshold)) ** slope)
    return found


def psychometric(
    distance: ArrayLike,
    correct: ArrayLike,
    groups: Sequence[ArrayLike] = (),
    *,
    level: float = 0.95,
) -> Curve | None:
    """The most likely curve, with an interval of its threshold.

    Without groups the interval is that of the likelihood ratio, slope and lapse chosen for every
    threshold. It holds where people are alike, and images of the same distance as well. With groups
    the logarithm of the threshold has Student's interval from a jackknife: each group is left out
    in turn, and the variances of several kinds of groups add up, less what they share.

    Args:
        distance: one per answer, 0 or more.
        correct: whether the answer is right.
        groups: what each answer belongs to: its person, say, and its image; a kind with fewer than
            6 groups is left aside.
        level: coverage of the interval.

    Returns:
        The curve; None below 10 answers with a distance above 0. An end of 0 or infinity is open:
        the answers bound the threshold no more than a factor of ten beyond their distances.

    Source: Wichmann and Hill 2001, Perception & Psychophysics 63, parts I and II; Miller 1974,
        Biometrika 61, for the jackknife; Cameron, Gelbach and Miller 2011, Journal of Business &
        Economic Statistics 29, for two kinds of groups.
    """
    x, y = np.asarray(distance, dtype=float), np.asarray(correct, dtype=float)
    if (x > 0).sum() < MIN_ANSWERS:
        return None
    answers = Counts.of(x, y)
    curve = _most_likely(answers, level)
    kinds = [pd.factorize(np.asarray(kind))[0] for kind in groups]
    kinds = [kind for kind in kinds if kind.max() + 1 >= MIN_GROUPS]
    if not kinds or not (curve.lo > 0 and np.isfinite(curve.hi)):
        return curve

    # What one answer adds is in the variance of either kind.
    alone = (np.log(curve.hi / curve.lo) / 2) ** 2 / chdtri(1, 1 - level)
    variances = [_jackknife(x, y, kind, curve) for kind in kinds]
    variance = max(alone, *variances, sum(variances) - alone * (len(kinds) - 1))
    freedom = min(int(kind.max()) for kind in kinds)
    half = stdtrit(freedom, (1 + level) / 2) * np.sqrt(variance)
    return replace(
        curve, lo=curve.threshold * float(np.exp(-half)), hi=curve.threshold * float(np.exp(half))
    )


@dataclass(frozen=True)
class Counts:
    """Answers by their distance: the distances, and at each how many, and how many are right."""

    distance: Array
    trials: Array
    right: Array

    @classmethod
    def of(cls, distance: Array, correct: Array) -> Counts:
        """Count answers."""
        values, place = np.unique(distance, return_inverse=True)
        trials = np.bincount(place).astype(float)
        return cls(values, trials, np.bincount(place, weights=correct).astype(float))

    def log_likelihood(self, seen: Array, lapse: ArrayLike) -> Array:
        """Of curves, given how often each distance is seen; distances lie along the first axis."""
        share = np.clip(0.5 + 0.5 * (1 - np.asarray(lapse)) * seen, 0.0, 1 - 1e-9)
        found: Array = self.right @ np.log(share) + (self.trials - self.right) @ np.log1p(-share)
        return found


def _most_likely(answers: Counts, level: float) -> Curve:
    """The best curve on a grid, then between its points; the interval by profile likelihood."""
    above = answers.distance[answers.distance > 0]
    ends = np.log([above.min(), above.max()]) + REACH
    logs = np.linspace(ends[0], ends[1], THRESHOLDS)
    seen = weibull(
        answers.distance[:, None, None], np.exp(logs)[None, :, None], SLOPES[None, None, :]
    )
    flat = seen.reshape(len(seen), -1)
    on_grid = np.stack([answers.log_likelihood(flat, lapse) for lapse in LAPSES])
    on_grid = on_grid.reshape(len(LAPSES), THRESHOLDS, len(SLOPES))
    best = np.unravel_index(int(on_grid.argmax()), on_grid.shape)

    profile = on_grid.max(axis=(0, 2))
    lo, hi = _ends(logs, profile - profile.max() + chdtri(1, 1 - level) / 2)
    start = Curve(float(np.exp(logs[best[1]])), lo, hi, float(SLOPES[best[2]]), LAPSES[best[0]])
    return _refined(answers, start)


def _refined(answers: Counts, start: Curve) -> Curve:
    """The best curve near a given one."""

    def loss(values: Array) -> float:
        seen = weibull(answers.distance, np.exp(values[0]), np.exp(values[1]))
        return -float(answers.log_likelihood(seen, values[2]))

    above = answers.distance[answers.distance > 0]
    least, most = np.log([above.min(), above.max()]) + REACH
    bounds = [(least, most), (np.log(SLOPES[0]), np.log(SLOPES[-1])), (LAPSES[0], LAPSES[-1])]
    first = [np.log(start.threshold), np.log(start.slope), start.lapse]
    found = minimize(loss, first, method="L-BFGS-B", bounds=bounds).x
    threshold, slope = np.exp(found[:2])
    return replace(start, threshold=float(threshold), slope=float(slope), lapse=float(found[2]))


def _jackknife(x: Array, y: Array, kind: NDArray[np.intp], curve: Curve) -> float:
    """The variance of the threshold's logarithm, over groups that are left out in turn."""
    count = int(kind.max()) + 1
    logs = np.array(
        [
            np.log(_refined(Counts.of(x[kind != group], y[kind != group]), curve).threshold)
            for group in range(count)
        ]
    )
    return float((count - 1) / count * ((logs - logs.mean()) ** 2).sum())


def foretelling(distance: ArrayLike, correct: ArrayLike) -> float:
    """How often a right answer was given at a greater distance than a wrong one; ties count half.

    0.5 foretells nothing. 1 is out of reach, as half of all guesses are right. NaN where all
    answers are right, or none.
    """
    x, y = np.asarray(distance, dtype=float), np.asarray(correct, dtype=bool)
    if y.all() or not y.any():
        return float("nan")
    return float(mannwhitneyu(x[y], x[~y]).statistic / (y.sum() * (~y).sum()))


def binned(distance: ArrayLike, correct: ArrayLike, *, bins: int = 8) -> pd.DataFrame:
    """Answers in groups of alike distances, to draw next to a curve.

    Returns:
        `distance` (the median of the group), `trials` and `right`.
    """
    table = pd.DataFrame(
        {"distance": np.asarray(distance, float), "right": np.asarray(correct, float)}
    )
    groups = pd.qcut(table["distance"].rank(method="first"), min(bins, len(table)), labels=False)
    found = table.groupby(groups).agg(
        distance=("distance", "median"), trials=("right", "size"), right=("right", "sum")
    )
    return found.reset_index(drop=True).astype({"right": int})


def _ends(logs: Array, excess: Array) -> tuple[float, float]:
    """Where a profile crosses its bound, between the points of the grid; 0 or infinity if never."""
    inside = np.flatnonzero(excess >= 0)
    first, last = inside[0], inside[-1]
    lo, hi = 0.0, np.inf
    if first > 0:
        around = [first - 1, first]
        lo = float(np.exp(np.interp(0.0, excess[around], logs[around])))
    if last < len(logs) - 1:
        around = [last + 1, last]
        hi = float(np.exp(np.interp(0.0, excess[around], logs[around])))
    return lo, hi
