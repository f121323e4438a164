"""Budgets and the ways to spend them."""

import pandas as pd
from rich.table import Table

from sdbench.records.columns import Format
from sdbench.records.computed import PAIRED_METRIC, PAIRED_SHARE, PLAN
from sdbench.report.tables.cells import (
    MISSING,
    add_row,
    empty_table,
    interval_text,
    markdown_lines,
)

NAME_WIDTH = 30  # of a variant; a mask of many steps is cut
LEFT = ("variant", "against the chosen")


def spending_text(table: pd.DataFrame, metric: str) -> Table:
    """Budgets for a terminal: the chosen variant first, then the others that were judged."""
    heads = _heads(table, metric)
    shown = empty_table(heads, left=LEFT, no_wrap=heads[:-1])
    for row in _rows(table, metric):
        add_row(shown, row)
    return shown


def spending_markdown(table: pd.DataFrame, metric: str) -> str:
    """The same in Markdown."""
    heads = _heads(table, metric)
    lines = [list(heads), ["---" if head in LEFT else "---:" for head in heads]]
    return markdown_lines([*lines, *_rows(table, metric)]) + "\n"


def _heads(table: pd.DataFrame, metric: str) -> tuple[str, ...]:
    changed = ("changed",) if f"{metric}_changed" in table else ()
    return ("budget", "variant", "NFE", metric, *changed, "against the chosen")


def _rows(table: pd.DataFrame, metric: str) -> list[list[str]]:
    """The cells of every candidate."""
    rows = []
    for _, row in table.iterrows():
        cells = [
            Format("g").text(row["budget"]),
            shortened(row["variant"]),
            PLAN["nfe"].format.text(row["nfe"]),
            interval_text(row, metric, PAIRED_METRIC),
        ]
        if f"{metric}_changed" in table:
            changed = row[f"{metric}_changed"]
            cells.append(MISSING if pd.isna(changed) else PAIRED_SHARE.text(changed))
        cells.append("chosen" if row["chosen"] else row["verdict"])
        rows.append(cells)
    return rows


def shortened(variant: str) -> str:
    """A variant's name; a long mask has dots in its middle."""
    if len(variant) <= NAME_WIDTH:
        return variant
    half = NAME_WIDTH // 2 - 1
    return f"{variant[:half]}..{variant[-half:]}"
