"""Distances between the distributions of images."""

import pandas as pd
from rich.table import Table

from sdbench.records.names import BASELINE
from sdbench.records.schema import columns
from sdbench.report.tables.cells import MISSING, empty_table, interval_text


def distances_text(table: pd.DataFrame) -> Table:
    """Distances for a terminal, nearest first.

    Args:
        table: the table of that name.
    """
    value = columns("distances")["value"]
    difference = columns("distances")["difference"]
    head = ("distance", value.label, difference.label, "variant")
    shown = empty_table(head, left=("distance", "variant"), no_wrap=head)

    # The baseline is what others are compared with, so it has no difference.
    for _, row in table.sort_values(["distance", "value"]).iterrows():
        more = interval_text(row, "difference", difference.format)
        shown.add_row(
            f"{row['distance']}, {row['features']}",
            interval_text(row, "value", value.format),
            MISSING if row["variant"] == BASELINE else more,
            row["variant"],
        )
    return shown
