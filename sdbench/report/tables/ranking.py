"""Variants in the order of a metric."""

from typing import Any

import pandas as pd
from rich.table import Table

from sdbench.records.columns import PERCENT, Format
from sdbench.records.computed import PAIRED_METRIC
from sdbench.report.tables.cells import MISSING, empty_table, interval_text
from sdbench.report.tables.known import marked


def ranking_text(table: pd.DataFrame, metric: str) -> Table:
    """A ranking for a terminal.

    Args:
        table: from `sdbench.analysis.ranking.ranking`.
        metric: the one that it was made for.
    """
    changed = f"{metric}_changed" in table
    beside = ("median", "changed %") if changed else ("median",)
    head = ("rank", marked(metric, metric, table), *beside, "variant")
    shown = empty_table(head, left=("variant",), no_wrap=("rank", "variant"))
    for _, row in table.iterrows():
        best, worst = row["best_rank"], row["worst_rank"]
        rank = str(best) if best == worst else f"{best} to {worst}"
        cells = [_cell(row, metric), _cell(row, f"{metric}_median")]
        if changed:
            cells.append(_cell(row, f"{metric}_changed", PERCENT))
        shown.add_row(rank, *cells, row["variant"])
    return shown


def ranking_note(table: pd.DataFrame) -> str:
    """How many comparisons were made, and what the ranks are corrected for."""
    count = len(table)
    return (
        f"Every two of {count} variants were compared pair by pair ({count * (count - 1) // 2} "
        "sign-flip tests, corrected by Holm at 5 %). A rank counts the variants that are clearly "
        "better; its range ends before those that are clearly worse."
    )


def _cell(row: "pd.Series[Any]", name: str, form: Format = PAIRED_METRIC) -> str:
    return MISSING if pd.isna(row[name]) else interval_text(row, name, form)
