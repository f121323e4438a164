"""A comparison of two runs: what is not the same, and what is not decided."""

import math
from typing import Any

import pandas as pd
from rich.table import Table

from sdbench.analysis.stats import MIN_PAIRS
from sdbench.analysis.timing import ABSOLUTE, RATIO
from sdbench.records.computed import COMPARISON, RELATIVE_CHANGE
from sdbench.report.disturbance import disturbance_note, in_markdown
from sdbench.report.tables.cells import add_row, empty_table, interval_text, markdown_lines

TEXTS = ("variant", "figure", "verdict")
HEAD = ("variant", "figure", *(column.label for column in COMPARISON.values()), "verdict")
TIMES = (RATIO, ABSOLUTE)
RELATIVE = (*TIMES, "peak_bytes")
"""Figures whose change is a share of the baseline's."""


def comparison_text(table: pd.DataFrame) -> Table:
    """A comparison of two runs for a terminal: what is not the same, and every time."""
    shown = empty_table(HEAD, left=TEXTS, note=disturbance_note(table))
    for cells in _rows(table):
        add_row(shown, cells)
    return shown


def comparison_markdown(table: pd.DataFrame) -> str:
    """The same for a pull request; what is undecided stands above it."""
    told = undecided_text(table)
    head = f"**{told}**\n\n" if told else ""
    lines = markdown_lines([HEAD, ["---"] * len(HEAD), *_rows(table)])
    return in_markdown(head + lines, table) + "\n"


def undecided_text(table: pd.DataFrame) -> str:
    """How many times are undecided, and what would decide them; empty where all are decided."""
    times = table[table["figure"].isin(TIMES)]
    undecided = times[times["verdict"] == "undecided"]
    if undecided.empty:
        return ""
    text = (
        f"UNDECIDED: {len(undecided)} of {len(times)} times: a slowdown of the threshold's size is "
        "neither found nor ruled out."
    )

    # The most demanding time speaks for all of them.
    needed = pd.to_numeric(undecided["repeats_needed"]).max()
    if not math.isnan(needed):
        text += f" {needed:.0f} repeats of both runs would decide."
    found = undecided["detectable"].max()
    if math.isnan(found):
        text += f" {MIN_PAIRS} repeats of both runs would tell how many decide."
    elif math.isfinite(found):
        text += f" These repeats find one of {math.ceil(100 * found)} % (--threshold)."
    return text


def _rows(table: pd.DataFrame) -> list[list[str]]:
    """The cells of times, and of every other figure that is not the same."""
    shown = table[(table["verdict"] != "same") | table["figure"].isin(TIMES)]
    return [_cells(row) for _, row in shown.iterrows()]


def _cells(row: "pd.Series[Any]") -> list[str]:
    relative = row["figure"] in RELATIVE
    change = interval_text(
        row, "change", RELATIVE_CHANGE if relative else COMPARISON["change"].format
    )
    if relative:
        change += f" {RELATIVE_CHANGE.unit}"

    # A verdict says what would make it firmer, and what speaks against it.
    verdict = str(row["verdict"])
    needed = row["repeats_needed"]
    if needed is not None and not pd.isna(needed):
        verdict += f", {needed:.0f} repeats would decide"
    if row["unstable"]:
        verdict += f", unstable: {row['unstable']}"

    figures = [COMPARISON[name].format.text(row[name]) for name in ("baseline", "current")]
    return [row["variant"], row["figure"], *figures, change, verdict]
