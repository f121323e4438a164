"""Shares with exact intervals, d', and what so many trials can show; on numbers and arrays.

A share lies against chance, which is one half in every kind of trial here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, ndtr, ndtri
from scipy.stats import binom

CHANCE = 0.5
LEVEL = 0.95
POWER = 0.8
MOST_DPRIME = 20.0  # beyond which a share is 1 to every digit

Array = NDArray[np.float64]


def exact_ends(right: ArrayLike, trials: ArrayLike, *, level: float = LEVEL) -> tuple[Array, Array]:
    """The ends of Clopper and Pearson's interval of a share.

    Args:
        right: numbers of right answers.
        trials: numbers of answers, at least 1.
        level: coverage of the interval, at least.

    Source: Clopper and Pearson 1934, Biometrika 26.
    """
    hits, count = (np.asarray(values, dtype=float) for values in (right, trials))
    tail = (1 - level) / 2
    low = np.where(hits > 0, betaincinv(np.maximum(hits, 1), count - hits + 1, tail), 0.0)
    high = np.where(hits < count, betaincinv(hits + 1, np.maximum(count - hits, 1), 1 - tail), 1.0)
    return low, high


def above_chance(right: ArrayLike, trials: ArrayLike) -> Array:
    """Exact p-values that a share is above chance: twice the tail, at most 1.

    So p is below 0.05 where the exact interval of 95 % lies above chance.
    """
    found: Array = np.minimum(1.0, 2 * binom.sf(np.asarray(right) - 1, trials, CHANCE))
    return found


def noticed(share: ArrayLike) -> Array:
    """The share of trials in which a difference is seen, corrected for guessing; at least 0.

    Who sees nothing is right in half of the trials.
    """
    return np.maximum(0.0, 2 * np.asarray(share, dtype=float) - 1)


def dprime(share: ArrayLike, mode: str) -> Array:
    """Return d' of an observer with no liking for a side, from the share of right answers.

    "reference": the reference is always there to look at, so the noise lies in A and B alone, as in
    a two-alternative forced choice. "abx": X is seen as noisily as A and B, and may be either; the
    observer compares differences. A share below chance gives 0, and a share of 1 gives infinity.

    Args:
        share: of right answers.
        mode: of the test.

    Raises:
        ValueError: the mode has no right answers.

    Source: Macmillan and Creelman 2005, Detection Theory: A User's Guide, 2nd edition, chapter 7
        (2AFC: p = Phi(d' / sqrt 2)) and chapter 9 (ABX, differencing model).
    """
    shares = np.clip(np.asarray(share, dtype=float), CHANCE, 1.0)
    if mode == "reference":
        found: Array = np.sqrt(2) * ndtri(shares)
        return found
    if mode != "abx":
        raise ValueError(f"mode {mode!r} has no right answers, and so no d'")
    inverse = np.vectorize(_abx_dprime, otypes=[float])
    return np.asarray(inverse(shares), dtype=float)


def share_of(d: ArrayLike, mode: str) -> Array:
    """The share of right answers of an observer with a d': the inverse of `dprime`."""
    values = np.asarray(d, dtype=float)
    first = ndtr(values / np.sqrt(2))
    if mode == "reference":
        return np.asarray(first, dtype=float)
    second = ndtr(values / np.sqrt(6))
    return np.asarray(first * second + (1 - first) * (1 - second), dtype=float)


def least_right(trials: int, *, level: float = 1 - LEVEL) -> int:
    """The fewest right answers whose p-value of `above_chance` is below a level."""
    return int(binom.isf(level / 2, trials, CHANCE)) + 1


def detectable(trials: int, *, level: float = 1 - LEVEL, power: float = POWER) -> float:
    """The smallest true share that the exact test finds with a power; NaN where none is found.

    Args:
        trials: number of answers.
        level: of the p-value.
        power: share of experiments in which it is found.
    """
    needed = least_right(trials, level=level)
    if needed > trials:
        return float("nan")
    return float(betaincinv(needed, trials - needed + 1, power))


def power_of(share: float, trials: int, *, level: float = 1 - LEVEL) -> float:
    """How often the exact test finds a true share."""
    return float(binom.sf(least_right(trials, level=level) - 1, trials, share))


def _abx_dprime(share: float) -> float:
    if np.isnan(share) or share <= CHANCE:
        return float("nan") if np.isnan(share) else 0.0
    if share_of(MOST_DPRIME, "abx") <= share:
        return float("inf")
    return float(brentq(lambda d: float(share_of(d, "abx")) - share, 0, MOST_DPRIME))
