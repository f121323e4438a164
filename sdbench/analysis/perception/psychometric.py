"""How well a distance between images foretells what people see: the psychometric curve.

The share of right answers over a distance x is 1/2 + (1/2 - lapse / 2) F(x), where F is Weibull's
curve: 0 where nothing differs, one half at the threshold, 1 far beyond it. A lapse is an answer
that has nothing to do with the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtri
from scipy.stats import mannwhitneyu

Array = NDArray[np.float64]

LAPSES = np.linspace(0, 0.1, 6)
SLOPES = np.geomspace(0.25, 8, 25)
THRESHOLDS = 241
DECADES = (-1.0, 1.0)  # how far the threshold is sought below and above the distances
MIN_RIGHT = 10
"""The fewest answers, and distances above 0, of which a curve is drawn."""


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


def psychometric(distance: ArrayLike, correct: ArrayLike, *, level: float = 0.95) -> Curve | None:
    """The most likely curve, with the interval of its threshold by profile likelihood.

    Slope and lapse are chosen anew for every threshold. All are sought on a grid: the threshold
    from a tenth of the smallest distance to ten times the largest. At an end of the grid the
    interval is open, which 0 or infinity says.

    Args:
        distance: one per answer, 0 or more.
        correct: whether the answer is right.
        level: coverage of the interval, where people are alike. People who differ make it too
            narrow.

    Returns:
        The curve; None below 10 answers with a distance above 0.

    Source: Wichmann and Hill 2001, Perception & Psychophysics 63, parts I and II; the interval is
        that of a likelihood ratio.
    """
    x, y = np.asarray(distance, dtype=float), np.asarray(correct, dtype=float)
    above = x[x > 0]
    if len(above) < MIN_RIGHT:
        return None
    ends = np.log10([above.min(), above.max()]) + DECADES
    thresholds = np.logspace(ends[0], ends[1], THRESHOLDS)
    values, place = np.unique(x, return_inverse=True)
    trials = np.bincount(place).astype(float)
    rights = np.bincount(place, weights=y).astype(float)

    # Axes: lapse, threshold, slope; each distance is summed over.
    seen = weibull(values[:, None, None], thresholds[None, :, None], SLOPES[None, None, :]).reshape(
        len(values), -1
    )
    logs = np.stack([_log_likelihood(seen, rights, trials, lapse) for lapse in LAPSES])
    logs = logs.reshape(len(LAPSES), THRESHOLDS, len(SLOPES))
    best = np.unravel_index(int(logs.argmax()), logs.shape)
    profile = logs.max(axis=(0, 2))
    inside = np.flatnonzero(profile >= profile.max() - chdtri(1, 1 - level) / 2)
    lo = 0.0 if inside[0] == 0 else float(thresholds[inside[0]])
    hi = np.inf if inside[-1] == THRESHOLDS - 1 else float(thresholds[inside[-1]])
    return Curve(float(thresholds[best[1]]), lo, hi, float(SLOPES[best[2]]), float(LAPSES[best[0]]))


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


def _log_likelihood(seen: Array, rights: Array, trials: Array, lapse: float) -> Array:
    """Of every curve, given how often it is seen at every distance."""
    share = np.clip(0.5 + 0.5 * (1 - lapse) * seen, 0.0, 1 - 1e-9)
    found: Array = rights @ np.log(share) + (trials - rights) @ np.log1p(-share)
    return found
