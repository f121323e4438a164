"""Whether people see a variant: shares against chance and against both kinds of catch trials."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from sdbench.analysis.paired_tests import LEVEL
from sdbench.analysis.perception.exact import above_chance, detectable, noticed
from sdbench.analysis.perception.mixed import mixed_shares
from sdbench.analysis.perception.people import with_shares
from sdbench.analysis.timing import corrected
from sdbench.records.names import CLEAR, IDENTICAL, TEST

SEEN, UNSEEN = "seen", "not shown to be seen"
"""What was shown of a variant."""


def detections(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per variant, then one for each kind of catch trial.

    A variant is seen where its share is above one half by an exact test, corrected by Holm for the
    number of variants. Who sees nothing is right as a coin is, whatever the person
    likes, because a coin chose the sides; so people may be pooled in this test.

    Args:
        answers: the table of that name without people who are left out, of a test that has right
            answers.

    Returns:
        `variant` (of a catch trial its kind), `kind`, `people`, `trials`, `right`; `share` with
        `_lo` and `_hi` (exact, 95 %), `noticed` likewise (the share corrected for guessing),
        `dprime` likewise; `p`, corrected; `p_clear` (that people are right less often than in clear
        catch trials) and `p_identical` (more often than with identical images), exact, one-sided
        and not corrected; `verdict`; `detectable`, the smallest true share that so many answers
        find with 80 % power; and what `mixed_shares` gives. Of catch trials only shares are there.

    Source: Clopper and Pearson 1934; Holm 1979; Fisher's exact test.
    """
    tests = answers[(answers["kind"] == TEST) & answers["correct"].notna()]
    return exact_detections(answers).merge(mixed_shares(tests), on="variant", how="left")


def exact_detections(answers: pd.DataFrame) -> pd.DataFrame:
    """What `detections` gives, without the mixed model.

    Args:
        answers: as there.

    Raises:
        ValueError: no answer is right or wrong.
    """
    judged = answers[answers["correct"].notna()]
    if judged.empty:
        raise ValueError("nobody's answers are left to judge")
    counts = _counts(judged)
    mode = str(answers["mode"].iloc[0])
    table = with_shares(counts, mode)
    for end in ("", "_lo", "_hi"):
        table[f"noticed{end}"] = noticed(table[f"share{end}"])

    tests = table["kind"] == TEST
    catch = {row["variant"]: row for row in table[~tests].to_dict("records")}
    for name, side in ((CLEAR, "less"), (IDENTICAL, "greater")):
        table[f"p_{name}"] = [
            _against(row, catch[name], side) if is_test and name in catch else np.nan
            for row, is_test in zip(table[["right", "trials"]].to_numpy(), tests, strict=True)
        ]
    table["p"] = np.nan
    own = table[tests]
    table.loc[tests, "p"] = corrected(above_chance(own["right"], own["trials"]))
    table["verdict"] = np.where(table["p"] < LEVEL, SEEN, np.where(tests, UNSEEN, ""))

    # The least p-value of Holm's is multiplied by the number of variants.
    level = LEVEL / max(1, int(tests.sum()))
    table["detectable"] = [
        detectable(int(trials), level=level) if is_test else np.nan
        for trials, is_test in zip(table["trials"], tests, strict=True)
    ]
    return table


def _counts(judged: pd.DataFrame) -> pd.DataFrame:
    """Answers and right answers by variant, and by kind of catch trial."""
    tests = judged["kind"] == TEST
    named = judged.assign(variant=judged["variant"].where(tests, judged["kind"]))
    order = {name: place for place, name in enumerate((TEST, CLEAR, IDENTICAL))}
    grouped = named.groupby(["kind", "variant"], sort=False, observed=True)
    counts = grouped.agg(
        people=("person", "nunique"), trials=("correct", "size"), right=("correct", "sum")
    ).reset_index()
    counts["right"] = counts["right"].astype(int)
    places = {name: place for place, name in enumerate(sorted(set(judged["variant"])))}
    return counts.sort_values(
        ["kind", "variant"],
        key=lambda own: own.map(order if own.name == "kind" else places).fillna(0),
        kind="stable",
        ignore_index=True,
    )[["variant", "kind", "people", "trials", "right"]]


def _against(counts: np.ndarray, other: dict[Hashable, Any], side: str) -> float:
    """Fisher's exact p-value of two shares of right answers."""
    right, trials = map(int, counts)
    table = [[right, trials - right], [other["right"], other["trials"] - other["right"]]]
    return float(fisher_exact(table, alternative=side).pvalue)
