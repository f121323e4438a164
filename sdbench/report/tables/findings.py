"""What a study found, in words: the lines above its table."""

import math
from typing import Any

import pandas as pd

from sdbench.analysis.stability import is_undecided
from sdbench.records.computed import SUMMARY
from sdbench.records.names import BASELINE
from sdbench.report.tables.summary import SAMPLES

FEW = 5  # variants that have a line
ENOUGH = 6  # images of a variant, below which a share of them is called a try-out


def findings(summary: pd.DataFrame) -> list[str]:
    """A line for each of the first timed variants: what it saves, and how many images it changes.

    Args:
        summary: of `sdbench.analysis.tables.summarise`.
    """
    timed = summary[(summary["variant"] != BASELINE) & summary["saving"].notna()]
    lines = [
        f"{row['variant']} {' and '.join(filter(None, (_saves(row), _changes(row))))}."
        for _, row in timed.head(FEW).iterrows()
    ]
    if len(timed) > FEW:
        lines.append(f"{len(timed) - FEW} more are in the table.")
    judged = timed.loc[timed["lpips_changed"].notna()]
    if len(judged) and judged["pairs"].max() < ENOUGH:
        pairs = f"{judged['pairs'].max():.0f} {_samples(judged.iloc[0])} of each variant"
        lines.append(f"Only {pairs}: what they show is a try-out, not a result.")
    return lines


def _saves(row: "pd.Series[Any]") -> str:
    """What a variant saves of the call's time, as far as its interval decides it."""
    percent = SUMMARY["saving"].format.text
    saving, lo, hi = (row.get(name, math.nan) for name in ("saving", "saving_lo", "saving_hi"))
    if pd.isna(lo):
        return f"saved {percent(saving)} % of the time in too few rounds to know how surely"
    if is_undecided(lo, hi):
        return "has an undecided saving"
    if lo <= 0 <= hi:
        return f"shows no saving of time ({percent(lo)} to {percent(hi)} %)"
    if hi < 0:
        return f"takes {percent(-saving)} % more time ({percent(-hi)} to {percent(-lo)} %)"
    return f"saves {percent(saving)} % of the time ({percent(lo)} to {percent(hi)} %)"


def _changes(row: "pd.Series[Any]") -> str:
    """How many images show something else, where that was measured."""
    share, pairs = row.get("lpips_changed", math.nan), row.get("pairs", math.nan)
    if pd.isna(share) or pd.isna(pairs):
        return ""
    return f"changes {round(share * pairs)} of {pairs:.0f} {_samples(row)}"


def _samples(row: "pd.Series[Any]") -> str:
    """What a call makes, in the plural."""
    return f"{SAMPLES[row.get('output', 'image')]}s"
