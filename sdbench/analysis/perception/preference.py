"""Which variant's image fits the caption better: wins, and one score per variant."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components
from scipy.special import ndtri
from scipy.stats import binomtest

from sdbench.analysis.paired_tests import LEVEL
from sdbench.analysis.perception.exact import exact_ends
from sdbench.analysis.perception.logistic import fit
from sdbench.analysis.timing import corrected
from sdbench.records.names import TEST

MIN_VARIANTS = 3
"""The fewest variants, the reference among them, that have a score."""


def wins(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per two variants that met.

    Args:
        answers: the table of that name without people who are left out, of a test of preference.

    Returns:
        `variant`, `against`, `trials`, `wins` (of the variant), `share` with `_lo` and `_hi`
        (exact, 95 %), and `p`: two-sided, exact, corrected by Holm.
    """
    tests = answers[answers["kind"] == TEST]
    won = (tests["preferred"] == tests["variant"]).astype(int)
    table = (
        tests.assign(won=won)
        .groupby(["variant", "against"], sort=False)["won"]
        .agg(trials="size", wins="sum")
        .reset_index()
    )
    if table.empty:
        raise ValueError("nobody's answers are left to judge")
    lo, hi = exact_ends(table["wins"], table["trials"])
    p = [binomtest(int(one), int(of)).pvalue for one, of in table[["wins", "trials"]].to_numpy()]
    return table.assign(
        share=table["wins"] / table["trials"], share_lo=lo, share_hi=hi, p=corrected(np.array(p))
    )


def scores(table: pd.DataFrame, reference: str, *, level: float = 1 - LEVEL) -> pd.DataFrame:
    """The Bradley-Terry score of every variant: the log-odds with which it wins over the reference.

    Args:
        table: from `wins`.
        reference: the variant whose score is 0.
        level: coverage of the interval.

    Returns:
        `variant`, `score`, `score_lo` and `score_hi` (Wald's interval), best first. No row where
        fewer than three variants met. The scores are NaN where some variants won, or lost, all
        trials against the others: then a score has no end.

    Source: Bradley and Terry 1952, Biometrika 39; Ford 1957, American Mathematical Monthly 64, for
        when a score is finite.
    """
    names = list(dict.fromkeys([reference, *table["variant"], *table["against"]]))
    if len(names) < MIN_VARIANTS:
        return pd.DataFrame(columns=["variant", "score", "score_lo", "score_hi"])
    counts = np.zeros((len(names), len(names)))
    for row in table.to_dict("records"):
        first, second = names.index(row["variant"]), names.index(row["against"])
        counts[first, second] += row["wins"]
        counts[second, first] += row["trials"] - row["wins"]
    found = np.full((3, len(names)), np.nan)
    if connected_components(counts > 0, connection="strong")[0] == 1:
        found = _fitted(counts, level)
    return pd.DataFrame(
        {"variant": names, "score": found[0], "score_lo": found[1], "score_hi": found[2]}
    ).sort_values("score", ascending=False, kind="stable", ignore_index=True)


def _fitted(counts: np.ndarray, level: float) -> np.ndarray:
    """Scores with their ends; the first variant's is 0."""
    pairs = [
        (i, j) for i, j in combinations(range(len(counts)), 2) if counts[i, j] + counts[j, i] > 0
    ]
    design = np.zeros((len(pairs), len(counts)))
    for row, (i, j) in enumerate(pairs):
        design[row, i], design[row, j] = 1, -1
    won = np.array([counts[i, j] for i, j in pairs])
    met = np.array([counts[i, j] + counts[j, i] for i, j in pairs])
    free = len(counts) - 1
    result = fit(design[:, 1:], won, met, np.zeros(free), np.zeros(free))
    half = ndtri((1 + level) / 2) * np.sqrt(np.diag(result.covariance))
    score = np.concatenate([[0.0], result.mode])
    half = np.concatenate([[0.0], half])
    return np.array([score, score - half, score + half])
