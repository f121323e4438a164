"""Distances between the distributions of images."""

from typing import Any

import pandas as pd
from rich.table import Table

from sdbench.records.names import BASELINE
from sdbench.records.schema import columns
from sdbench.report.tables.cells import MISSING, add_row, empty_table, interval_text


def distances_text(table: pd.DataFrame) -> Table:
    """Distances for a terminal: differences first, the kernel's before Fréchet's, nearest first.

    Args:
        table: the table of that name.
    """
    shown_columns = [columns("distances")[name] for name in ("difference", "value", "floor")]
    head = ("distance", *(column.label for column in shown_columns), "variant")
    shown = empty_table(head, left=("distance", "variant"), no_wrap=("distance", "variant"))

    # The kernel distance has no bias, so it comes first.
    ordered = table.sort_values(["distance", "difference"], ascending=[False, True])
    for _, row in ordered.iterrows():
        cells = [_cell(row, name) for name in ("difference", "value", "floor")]
        add_row(shown, [f"{row['distance']}, {row['features']}", *cells, row["variant"]])
    return shown


def _cell(row: "pd.Series[Any]", name: str) -> str:
    """The baseline is what others are compared with: it has no difference."""
    is_its_own = name == "difference" and row["variant"] == BASELINE
    if is_its_own or pd.isna(row[name]):
        return MISSING
    return interval_text(row, name, columns("distances")[name].format)
