"""Variants in the order of a metric."""

import pandas as pd
from rich.table import Table

from sdbench.records.computed import PAIRED_METRIC
from sdbench.report.tables.cells import empty_table, interval_text


def ranking_text(table: pd.DataFrame, metric: str) -> Table:
    """A ranking for a terminal.

    Args:
        table: from `sdbench.analysis.ranking.ranking`.
        metric: the one that it was made for.
    """
    head = ("rank", metric, "variant")
    shown = empty_table(head, left=("variant",), no_wrap=head)
    for _, row in table.iterrows():
        best, worst = row["best_rank"], row["worst_rank"]
        rank = str(best) if best == worst else f"{best} to {worst}"
        shown.add_row(rank, interval_text(row, metric, PAIRED_METRIC), row["variant"])
    return shown
