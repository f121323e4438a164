"""Plans and their controls."""

import pandas as pd
from rich.table import Table

from sdbench.records.computed import PAIRED_METRIC, PLAN
from sdbench.records.names import PLANNED
from sdbench.report.tables.cells import MISSING, add_row, empty_table, interval_text


def plan_text(table: pd.DataFrame, metric: str) -> Table:
    """Plans and their controls for a terminal; intervals may wrap.

    Args:
        table: from `sdbench.analysis.plans.plan_table`.
        metric: the one that it was made for.
    """
    numbers = (PLAN["nfe"].label, PLAN["saving"].label, metric, PLAN["worse"].label)
    texts = ("variant", "verdict")
    shown = empty_table(("variant", *numbers, "verdict"), left=texts, no_wrap=texts)

    # The plan is named by its steps, as several of them stand in one table.
    for _, row in table.iterrows():
        planned = row["variant"] == PLANNED
        name = f"plan of {row['unguided']}" if planned else row["variant"]
        worse = MISSING if planned else interval_text(row, "worse", PLAN["worse"].format)
        cells = [
            name,
            PLAN["nfe"].format.text(row["nfe"]),
            interval_text(row, "saving", PLAN["saving"].format),
            interval_text(row, metric, PAIRED_METRIC),
            worse,
            row["verdict"],
        ]
        add_row(shown, cells)
    return shown
