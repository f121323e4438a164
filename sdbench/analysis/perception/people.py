"""Who answered, and who is left out by a rule that is fixed before anybody answers."""

from __future__ import annotations

import pandas as pd

from sdbench.analysis.perception.exact import dprime, exact_ends
from sdbench.records.names import CLEAR, IDENTICAL, TEST

CLEAR_SHARE = 0.85
"""Of the clear catch trials that a person has to get right: 7 of the 8 in a page of 48 trials. Who
only guesses does so in 4 % of the tests."""
RULE = (
    f"left out is who is right in fewer than {CLEAR_SHARE:.0%} of the catch trials whose images "
    "differ clearly"
)


def people(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per person.

    Args:
        answers: the table of that name.

    Returns:
        `person`, `simulated`, `tests`, `right` (of these; missing where nothing is right), `clear`
        and `clear_right`, `identical`, `identical_right`, `chose_a` (the share of all answers),
        `response_s` (median), and `kept`.
    """
    rows = []
    for person, own in answers.groupby("person", sort=False):
        row: dict[str, object] = {"person": person, "simulated": bool(own["simulated"].iloc[0])}
        for kind, name in ((TEST, "tests"), (CLEAR, CLEAR), (IDENTICAL, IDENTICAL)):
            of_kind = own.loc[own["kind"] == kind, "correct"]
            rights = "right" if kind == TEST else f"{name}_right"
            row |= {name: len(of_kind), rights: int(of_kind.sum())}
        row["chose_a"] = float((own["chosen"] == "A").mean())
        row["response_s"] = float(own["response_s"].median())
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(kept=table["clear_right"] >= CLEAR_SHARE * table["clear"])


def kept_answers(answers: pd.DataFrame) -> pd.DataFrame:
    """The answers of those who are not left out."""
    table = people(answers)
    return answers[answers["person"].isin(table.loc[table["kept"], "person"])]


def by_person(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per person and variant.

    Args:
        answers: the table of that name, of a test that has right answers.

    Returns:
        `person`, `kept`, `variant`, `trials`, `right`, `share` with `_lo` and `_hi`, and `dprime`
        with `_lo` and `_hi`; exact intervals of 95 %.
    """
    tests = answers[(answers["kind"] == TEST) & answers["correct"].notna()]
    counts = (
        tests.groupby(["person", "variant"], sort=False)["correct"]
        .agg(trials="size", right="sum")
        .reset_index()
        .astype({"right": int})
    )
    kept = people(answers).set_index("person")["kept"]
    counts.insert(1, "kept", counts["person"].map(kept))
    mode = str(answers["mode"].iloc[0])
    return with_shares(counts, mode) if len(counts) else counts


def with_shares(counts: pd.DataFrame, mode: str) -> pd.DataFrame:
    """A frame with `trials` and `right`, and with their share and d' and the ends of these."""
    lo, hi = exact_ends(counts["right"], counts["trials"])
    share = (counts["right"] / counts["trials"]).to_numpy(float)
    table = counts.copy()
    for name, value in (("", share), ("_lo", lo), ("_hi", hi)):
        table[f"share{name}"] = value
    for name, value in (("", share), ("_lo", lo), ("_hi", hi)):
        table[f"dprime{name}"] = dprime(value, mode)
    return table
