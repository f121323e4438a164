"""Tests of paired differences, many comparisons at once, on arrays.

A p-value here is one-sided and not corrected: who asks many questions corrects for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import digamma, polygamma, stdtr

LEVEL = 0.05  # of the tests of one question together
DRAWS = 20_000
ROUNDING = 1e-6  # of the sum of a comparison's differences: what float32 may lose
BLOCK = 2**24  # signs that are in memory at a time

Array = NDArray[np.float64]


class OneSided(NamedTuple):
    """p-values of comparisons, in their order: that a difference is above 0, or below."""

    above: Array
    below: Array


def flip_tests(
    differences: ArrayLike, clusters: ArrayLike, *, draws: int = DRAWS, seed: int = 0
) -> OneSided:
    """Sign-flip tests of the means of paired differences.

    Where two variants are exchangeable, the sign of a pair's difference is a coin's. All seeds of a
    prompt flip together, and all comparisons flip alike. No form of the differences is assumed, so
    a few large ones do no harm.

    Args:
        differences: (pairs, comparisons); NaN where a pair was not measured. Their signs in place
            of them give the sign test: whether most pairs differ in one direction. An infinite one,
            as of an identical image's PSNR, counts a little more than the largest finite one.
        clusters: what each pair belongs to (its prompt).
        draws: of the signs. Every choice of signs counts once where there are no more choices.
        seed: of the draws.

    Returns:
        p-values, at least `1 / draws`; 1 where nothing differs.

    Source: Good 2005, Permutation, Parametric, and Bootstrap Tests of Hypotheses, section 3.2.
    """
    measured = _finite(np.asarray(differences, dtype=float))
    names, labels = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(names), measured.shape[1]))
    np.add.at(sums, labels, measured)

    # Where sums are scaled to one, float32 is enough.
    size = np.abs(sums).sum(0)
    scaled = (sums / np.where(size > 0, size, 1)).astype(np.float32)
    observed = scaled.sum(0)

    number = 0
    above = np.zeros(len(observed))
    below = np.zeros(len(observed))
    for signs in _signs(len(names), draws, seed):
        totals = signs @ scaled
        above += (totals >= observed - ROUNDING).sum(0)
        below += (totals <= observed + ROUNDING).sum(0)
        number += len(signs)
    return OneSided(above / number, below / number)


def clear_tests(
    differences: ArrayLike, clusters: ArrayLike, *, most: bool, draws: int = DRAWS
) -> OneSided:
    """Whether variants differ in the mean, and where asked in most pairs too.

    A mean of LPIPS is decided by a few images that became others. So a difference counts when the
    mean and most pairs agree: the larger p-value of both tests.

    Args:
        differences: as `flip_tests` takes them.
        clusters: likewise.
        most: whether most pairs must agree.
        draws: likewise.
    """
    values = np.asarray(differences, dtype=float)
    if not most:
        return flip_tests(values, clusters, draws=draws)
    both = flip_tests(np.hstack([values, np.sign(values)]), clusters, draws=draws)
    return OneSided(*(p.reshape(2, -1).max(axis=0) for p in both))


def slower_tests(logs: ArrayLike, *, tolerance: float = 0.0) -> Array:
    """Student's t tests of the paired log-ratios of every two variants' times.

    With six repeats a variance is known badly, and of many pairs some seem to have none. So each is
    drawn towards those of all pairs, as far as these are alike.

    Args:
        logs: logarithms of times, (repeats, variants); NaN where a repeat was not measured.
        tolerance: relative.

    Returns:
        (variants, variants): the p-value that the row's variant is slower than the column's; with a
        tolerance, that it is not faster by more than this. 1 below two shared repeats.

    Source: Smyth 2004, Statistical Applications in Genetics and Molecular Biology 3(1), article 3,
        section 6; the degrees of freedom are at most those of all repeats of all variants.
    """
    times = np.asarray(logs, dtype=float)
    ratios = times[:, :, None] - times[:, None, :]
    there = np.isfinite(ratios)
    count = there.sum(0)
    mean = np.where(there, ratios, 0).sum(0) / np.maximum(count, 1)
    squares = np.where(there, ratios - mean, 0) ** 2
    freedom = np.maximum(count - 1, 0).astype(float)
    variance = squares.sum(0) / np.maximum(freedom, 1)

    variance, freedom = _moderated(variance, freedom, most=(len(times) - 1) * (times.shape[1] - 1))
    excess = mean + math.log1p(tolerance)
    error = np.sqrt(variance / np.maximum(count, 1))
    spread = error > 0
    t = np.where(spread, excess / np.where(spread, error, 1), np.copysign(np.inf, excess))
    p = stdtr(np.maximum(freedom, 1), -t)
    return np.where((count < 2) | (excess == 0) & ~spread, 1.0, p)


def _finite(differences: Array) -> Array:
    """Differences that add up: 0 for NaN, and a little more than all else for infinite ones."""
    sizes = np.abs(np.where(np.isfinite(differences), differences, 0))
    most = 1.01 * sizes.max(axis=0, initial=0)
    most = np.where(most > 0, most, 1)
    return np.clip(np.nan_to_num(differences, nan=0.0), -most, most)


def _signs(count: int, draws: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Signs of `count` clusters in blocks of rows; in the first row nothing is flipped."""
    if 2**count <= draws:
        choices = np.arange(2**count)[:, None] >> np.arange(count) & 1
        yield (1 - 2 * choices).astype(np.float32)
        return

    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // count)  # bounds the memory, not the result
    for start in range(0, draws, rows):
        flipped = generator.integers(2, size=(min(rows, draws - start), count), dtype=np.int8)
        if start == 0:
            flipped[0] = 0
        yield (1 - 2 * flipped).astype(np.float32)


def _moderated(variance: Array, freedom: Array, *, most: int) -> tuple[Array, Array]:
    """Variances of pairs and their degrees of freedom, with what all pairs say of a variance."""
    own = np.triu((variance > 0) & (freedom > 0), 1)
    if own.sum() < 2:
        return variance, freedom
    half = freedom[own] / 2
    logs = np.log(variance[own]) - digamma(half) + np.log(half)

    # Where the variances differ no more than by chance, they are one.
    excess = float(logs.var(ddof=1) - polygamma(1, half).mean())
    if excess <= 0:
        return np.full_like(variance, np.exp(logs.mean())), np.full_like(freedom, most)

    prior = 2 * brentq(lambda x: float(polygamma(1, x)) - excess, 1e-6, 1e9)
    typical = np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2))
    weighted = (prior * typical + freedom * variance) / (prior + freedom)
    return weighted, np.minimum(freedom + prior, most)
