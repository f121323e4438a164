"""The intervals of `sdbench.analysis.stats`, of thousands of samples at once.

The formulas are those of the package. What differs is the search for the ends, which runs over all
samples side by side. A test holds both against each other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize.elementwise import find_root
from scipy.special import bdtrik, betaincinv, ndtri

from benchmarks.populations import Array
from sdbench.analysis.stats import HALF, MIN_CLUSTERS, ROUNDING, gaffke_bracket, gaffke_end

TAIL = 0.025
TARGET = float(ndtri(1 - TAIL))


class Ends(NamedTuple):
    """The ends of an interval, one per sample."""

    lo: Array
    hi: Array


def mean_ends(samples: Array, *, bounds: tuple[float, float], fewest: int = MIN_CLUSTERS) -> Ends:
    """`bounded_mean` of samples (sample, prompt, seed)."""
    count, prompts, _ = samples.shape
    if prompts < max(fewest, MIN_CLUSTERS) or not np.isfinite(bounds).all():
        return Ends(np.full(count, np.nan), np.full(count, np.nan))

    estimates = samples.mean((1, 2))
    deviations = samples.mean(2) - estimates[:, None]
    least = np.minimum(samples.min((1, 2)), bounds[0])
    most = np.maximum(samples.max((1, 2)), bounds[1])
    lo = estimates - _gaffke(-deviations, estimates - least)
    hi = estimates + _gaffke(deviations, most - estimates)
    return Ends(np.maximum(lo, least), np.minimum(hi, most))


def share_ends(flags: Array) -> Ends:
    """`share_interval` of flags (sample, prompt, seed) that are 0 or 1."""
    if flags.shape[2] > 1 or flags.shape[1] < MIN_CLUSTERS:
        return mean_ends(flags, bounds=(0, 1))

    trues = flags.sum((1, 2))
    falses = flags.shape[1] - trues
    with np.errstate(all="ignore"):  # the ends that are 0 and 1 are put in below
        lo = betaincinv(trues, falses + 1, TAIL)
        hi = betaincinv(trues + 1, falses, 1 - TAIL)
    return Ends(np.where(trues > 0, lo, 0.0), np.where(falses > 0, hi, 1.0))


def median_ends(samples: Array) -> Ends:
    """`median_interval` of samples (sample, prompt, seed)."""
    count, prompts, seeds = samples.shape
    if prompts < MIN_CLUSTERS:
        return Ends(np.full(count, np.nan), np.full(count, np.nan))
    if seeds == 1:
        ordered = np.sort(samples[:, :, 0])
        rank = int(bdtrik(TAIL, prompts, 0.5)) + 1  # 1 is the least
        return Ends(ordered[:, rank - 1], ordered[:, -rank])
    return Ends(_median_end(samples), -_median_end(-samples))


def _median_end(samples: Array) -> Array:
    """The least value of each sample up to which there may be half of all values."""
    every = np.arange(len(samples))
    ordered = np.sort(samples.reshape(len(samples), -1))
    first = np.zeros(len(samples), dtype=int)  # of the places that are left
    last = np.full(len(samples), ordered.shape[1] - 1)  # up to it lie all, so it is one

    while (first < last).any():
        middle = (first + last) // 2
        within = (samples <= ordered[every, middle, None, None]).mean(2)
        shares = within.mean(1)
        is_one = shares + _gaffke(within - shares[:, None], 1 - shares) >= HALF
        first, last = np.where(is_one, first, middle + 1), np.where(is_one, middle, last)
    return ordered[every, last]


def _gaffke(deviations: Array, room: Array) -> Array:
    """How far above its estimate the upper end of each sample lies."""
    x = np.column_stack([deviations, room])
    ends = np.zeros(len(x))
    rows = np.flatnonzero(x.max(1) > ROUNDING)
    if not len(rows):
        return ends

    def missing(tau: Array, row: Array) -> Array:
        return gaffke_end(x[row], tau)[1] - TARGET

    found = find_root(
        missing, gaffke_bracket(x[rows]), args=(rows,), tolerances={"xatol": 0, "xrtol": 1e-9}
    )
    if not found.success.all():
        raise AssertionError(f"{(~found.success).sum()} of {len(rows)} bounds were not found")
    ends[rows] = gaffke_end(x[rows], found.x)[0]
    return ends
