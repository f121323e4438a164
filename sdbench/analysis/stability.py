"""What the records say of how undisturbed a run was, and which of its savings are decided.

How it is watched is in `sdbench.instruments.disturbance`, and the rule that calls a round disturbed
in `sdbench.records.disturbed`.
"""

import numpy as np
import pandas as pd

from sdbench.analysis.calls import counted
from sdbench.analysis.stats import MIN_PAIRS
from sdbench.analysis.timing import RATIO, Array, log_ratios
from sdbench.records.disturbed import APART, COLUMNS, LOAD, SPREAD, rounds
from sdbench.records.names import BASELINE
from sdbench.records.store import Results

WATCHED = COLUMNS | {"runs": (*COLUMNS["runs"], "disturbed", "sha256")}
"""Columns that `disturbance` needs."""
UNDECIDED_FROM = 0.2
"""Width of the interval of a saving, a share of the baseline's time, beyond which it is undecided:
the savings that are compared are mostly within twenty points of each other."""
UNSTABLE = 0.05  # standard deviation of the logarithm of a ratio of times, within one run


def disturbance(results: Results) -> str:
    """What disturbed a run, and how much, in words; empty for a calm run.

    Args:
        results: of a study, with the columns in `WATCHED`.
    """
    found = rounds(results.runs, results.steps)
    disturbed = found[found["disturbed"]]
    if disturbed.empty:
        return ""

    most = disturbed[["load", "spread", "apart"]].max()
    number = int((disturbed["others"] > 0).sum())
    held = int(disturbed["held_back"].sum())
    kinds = {
        f"others took up to {most['load']:.1f} cores": most["load"] > LOAD,
        f"others were on the GPU in {number} of them": number > 0,
        f"the device was held back in {held} calls": held > 0,
        f"steps of equal work spread by up to {most['spread']:.0%}": most["spread"] > SPREAD,
        f"calls of equal work were up to {most['apart']:.0%} apart": most["apart"] > APART,
    }
    reasons = ", ".join(text for text, is_told in kinds.items() if is_told)
    told = f"{len(disturbed)} of {len(found)} rounds of calls: {reasons}"

    # What was measured again takes the place of what does not count.
    left_out = int((~disturbed.index.isin(counted(results.runs)["beside"].dropna())).sum())
    return f"{told}; {left_out} of them left out" if left_out else told


def is_undecided(lo: float, hi: float) -> bool:
    """Whether the interval of a saving is too wide to say anything; False where there is none."""
    return hi - lo > UNDECIDED_FROM


def undecided(table: pd.DataFrame, saving: str) -> "pd.Series[bool]":
    """Which rows of a table have an undecided saving, given the column of that name."""
    return table[f"{saving}_hi"] - table[f"{saving}_lo"] > UNDECIDED_FROM


def untimed(table: pd.DataFrame, saving: str) -> "pd.Series[bool]":
    """Which rows of a summary have a predicted saving and no time of their own."""
    predicted = table.get(f"predicted_{saving}", pd.Series(np.nan, table.index))
    return table[saving].isna() & predicted.notna()


def unstable(results: Results) -> dict[str, str]:
    """What speaks against a run as the baseline of times: what it says would be its own noise.

    Returns:
        By variant a text, where its ratios to the baseline variant spread by over 5 %, or where
        there are too few of them to tell.
    """
    ratios = log_ratios(results)
    nothing = np.array([])

    told = {}
    for variant in _measured(results.runs)["variant"].unique():
        logs = ratios.get((RATIO, str(variant)), nothing)
        reason = spread_text(logs) or _scarcity_text(logs)
        if reason and variant != BASELINE:
            told[str(variant)] = reason
    return told


def spread_text(logs: Array) -> str:
    """That the logarithms of times or ratios spread too far; empty where they do not."""
    spread = float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
    return f"times spread by {spread:.0%}" if spread > UNSTABLE else ""


def _scarcity_text(logs: Array) -> str:
    if len(logs) >= MIN_PAIRS:
        return ""
    return f"of {MIN_PAIRS} repeats that tell how times spread there are {len(logs)}"


def disturbances(runs: pd.DataFrame) -> dict[str, list[str]]:
    """What speaks against the times of every variant, from its measured calls that finished.

    Returns:
        By variant one text for each kind of disturbance; a variant without any is not in it, nor is
        one whose calls did not record it.
    """
    disturbed: dict[str, list[str]] = {}
    for variant, calls in _measured(runs).groupby("variant"):
        load = calls["foreign_load"].mean()
        shared = int((calls["foreign_processes"].fillna(0) > 0).sum())
        held = int(calls["throttled"].fillna(False).sum())
        reasons = [f"others took {load:.1f} cores"] if load > LOAD else []
        reasons += [f"others were on the GPU in {shared} of {len(calls)} calls"] if shared else []
        reasons += [f"the device was held back in {held} of {len(calls)} calls"] if held else []
        if reasons:
            disturbed[str(variant)] = reasons
    return disturbed


def _measured(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[(runs["phase"] == "measured") & (runs["status"] == "ok")]
