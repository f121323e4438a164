"""A mixed logistic model: what other people would see in other images.

An exact interval of all answers speaks of these people and these images. This one has people and
pairs of prompt and seed as random effects, so it is wider where they differ.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, ndtr

from sdbench.analysis.perception.logistic import Array, Fit, fit

MIN_GROUPS = 6
"""The fewest people, and the fewest pairs, of which a spread is estimated."""
DEVIATIONS = np.array([0.05, 0.2, 0.4, 0.6, 0.85, 1.15, 1.5, 2.0])
"""Standard deviations of a random effect, in log-odds, over which the answer is averaged."""
PRIOR_DEVIATION = 1.0  # half-normal, of those
PRIOR_SHARE = 3.0  # normal, of a variant's log-odds; it keeps an answer finite if all are right
BEYOND = 30.0  # log-odds


def mixed_shares(tests: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """The typical person's share of right answers on a typical pair, per variant.

    The log-odds of a right answer are the variant's, a person's and a pair's. The posterior is
    computed by Laplace's method at each of a grid of deviations, and averaged over these.

    Args:
        tests: rows of the table `answers`, of variants, with `correct`.
        level: probability of the interval.

    Returns:
        `variant`, `mixed`, `mixed_lo`, `mixed_hi` (shares), `people_sd` and `pairs_sd` (posterior
        means, in log-odds); no row below 6 people or 6 pairs.

    Source: Rue, Martino and Chopin 2009, Journal of the Royal Statistical Society B 71, section 3,
        with Laplace's method for the effects.
    """
    pairs = pd.factorize(pd.MultiIndex.from_frame(tests[["prompt_id", "seed"]]))[0]
    people = pd.factorize(tests["person"])[0]
    names = list(dict.fromkeys(tests["variant"]))
    groups = (len(set(people)), len(set(pairs)))
    columns = ["variant", "mixed", "mixed_lo", "mixed_hi", "people_sd", "pairs_sd"]
    if min(groups) < MIN_GROUPS:
        return pd.DataFrame(columns=columns)

    fixed = tests["variant"].map(names.index).to_numpy(np.intp)
    right = tests["correct"].to_numpy(dtype=float)
    fits, weights, grid = _over_grid(_design(fixed, people, pairs), right, len(names), groups)
    rows = []
    for place, name in enumerate(names):
        means = np.array([one.mode[place] for one in fits])
        spreads = np.sqrt([one.covariance[place, place] for one in fits])
        lo, hi = (_quantile(means, spreads, weights, p) for p in ((1 - level) / 2, (1 + level) / 2))
        middle = _quantile(means, spreads, weights, 0.5)
        rows.append([name, *expit([middle, lo, hi]), *(weights @ grid)])
    return pd.DataFrame(rows, columns=columns)


def _design(*groups: NDArray[np.intp]) -> Array:
    """One column per variant, person and pair."""
    parts = [np.eye(int(of.max()) + 1)[of] for of in groups]
    return np.hstack(parts)


def _over_grid(
    design: Array, right: Array, variants: int, groups: tuple[int, int]
) -> tuple[list[Fit], Array, Array]:
    """The fits at all deviations of people and pairs, their weights, and these deviations."""
    # Rows that are alike count together.
    rows, place = np.unique(design, axis=0, return_inverse=True)
    counts = np.bincount(place.ravel()).astype(float)
    wins = np.bincount(place.ravel(), weights=right).astype(float)

    grid = np.array([(one, other) for one in DEVIATIONS for other in DEVIATIONS])
    fits: list[Fit] = []
    start = np.zeros(design.shape[1])
    for of_people, of_pairs in grid:
        precision = np.concatenate(
            [
                np.full(variants, PRIOR_SHARE**-2),
                np.full(groups[0], of_people**-2),
                np.full(groups[1], of_pairs**-2),
            ]
        )
        fits.append(fit(rows, wins, counts, precision, start))
        start = fits[-1].mode

    widths = np.gradient(DEVIATIONS)
    prior = np.log(np.outer(widths, widths).ravel()) - (grid**2).sum(1) / 2 / PRIOR_DEVIATION**2
    logs = np.array([one.evidence for one in fits]) + prior
    weights = np.exp(logs - logs.max())
    return fits, weights / weights.sum(), grid


def _quantile(means: Array, spreads: Array, weights: Array, probability: float) -> float:
    """A quantile of a mixture of normal distributions."""
    return float(
        brentq(
            lambda x: float(weights @ ndtr((x - means) / spreads)) - probability, -BEYOND, BEYOND
        )
    )
