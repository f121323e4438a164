"""Plans and their controls."""

from typing import Any

import pandas as pd
from rich.table import Table

from sdbench.records.columns import Format
from sdbench.records.computed import PAIRED_METRIC, PAIRED_SHARE, PLAN
from sdbench.records.names import PLANNED
from sdbench.report.disturbance import disturbance_note
from sdbench.report.tables.cells import MISSING, add_row, empty_table, interval_text

WIDE = 120  # columns of a terminal from which every figure has its interval


def plan_text(table: pd.DataFrame, metric: str, *, width: int = WIDE) -> Table:
    """Plans and their controls for a terminal of `width` columns.

    Intervals stand below their estimates. A terminal below 120 columns has those that the verdict
    hangs on, which fits 80.

    Args:
        table: from `sdbench.analysis.plans.plan_table`.
        metric: the one that it was made for.
        width: of the terminal.
    """
    wide = width >= WIDE
    forms = {metric: PAIRED_METRIC, f"{metric}_median": PAIRED_METRIC}
    labels = {metric: metric, f"{metric}_median": "median"}
    if f"{metric}_changed" in table:
        forms[f"{metric}_changed"] = PAIRED_SHARE
        labels[f"{metric}_changed"] = "changed"

    against = ["worse", *(["plan_better"] if wide else [])]
    numbers = [PLAN["nfe"].label, PLAN["saving"].label, *labels.values()]
    numbers += [PLAN[name].label for name in against]
    shown = empty_table(
        ("variant", *numbers, "verdict"),
        left=("variant", "verdict"),
        no_wrap=("variant", *labels.values(), PLAN["worse"].label),
        note=disturbance_note(table),
    )

    # The plan is named by its steps, as several of them stand in one table.
    for _, row in table.iterrows():
        planned = row["variant"] == PLANNED
        cells = [
            f"plan of {row['unguided']}" if planned else row["variant"],
            PLAN["nfe"].format.text(row["nfe"]),
            _stacked(row, "saving", PLAN["saving"].format),
            *(_stacked(row, name, form, ends=wide) for name, form in forms.items()),
            *(MISSING if planned else _stacked(row, name, PLAN[name].format) for name in against),
            row["verdict"],
        ]
        add_row(shown, cells)
    return shown


def _stacked(row: "pd.Series[Any]", name: str, form: Format, *, ends: bool = True) -> str:
    """An estimate, and below it the ends of its interval; missing where nothing was measured."""
    if pd.isna(row[name]):
        return MISSING
    return interval_text(row, name, form).replace(" ", "\n") if ends else form.text(row[name])
