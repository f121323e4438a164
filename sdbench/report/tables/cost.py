"""What a point of a cost sweep says: one line on its steps, and a table of savings."""

import math

import pandas as pd
from rich.table import Table

from sdbench.records.columns import Format
from sdbench.records.computed import COST, STEP_COST
from sdbench.report.disturbance import WORD, disturbance_note
from sdbench.report.tables.cells import MISSING, interval_text, put_above


def cost_heading(point: pd.DataFrame) -> str:
    """The point's size and batch, what its steps take, and R.

    Args:
        point: as `sdbench.experiments.cost.sweep` yields it.
    """
    row = point.iloc[0]
    texts = {
        name: f"{column.label} {column.format.text(row[name])} {column.format.unit}".rstrip()
        for name, column in STEP_COST.items()
        if name != "ratio"
    }
    ratio = STEP_COST["ratio"]
    compiled = f", {texts['compile_s']}" if row["compile_s"] > 0 else ""
    return (
        f"{row['height']} x {row['width']}, batch {row['batch']}: {texts['guided_s']}, "
        f"{texts['unguided_s']}, {ratio.label} = {_with_ends(row, 'ratio', ratio.format)}, "
        f"{texts['denoise_share']} of a call{compiled}"
    )


def cost_table(point: pd.DataFrame) -> Table:
    """Savings of the denoising loop and of the whole call: ideal, predicted from R, measured.

    Args:
        point: as `sdbench.experiments.cost.sweep` yields it.
    """
    # Intervals may wrap here: the table is wide and its rows are few.
    table = Table(box=None, pad_edge=False)
    put_above(table, disturbance_note(point))
    table.add_column("variant", no_wrap=True)
    for column in COST.values():
        table.add_column(column.label, justify="right")

    for _, row in point.iterrows():
        cells = {name: _with_ends(row, name, column.format) for name, column in COST.items()}
        if cells["denoise_saving"] == WORD:
            cells["share_of_ideal"] = WORD
        table.add_row(row["variant"], *cells.values())
    return table


def _with_ends(row: "pd.Series[float]", name: str, form: Format) -> str:
    """The estimate, and its interval in brackets where there are enough samples for one."""
    return MISSING if math.isnan(row[name]) else interval_text(row, name, form, between=", ")
