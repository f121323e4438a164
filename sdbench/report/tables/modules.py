"""Where a step's time and work go: a line for each kind of layer, or for each block."""

import pandas as pd
from rich.table import Table

from sdbench.records.computed import LOOP, MODULE
from sdbench.report.tables.cells import MISSING, add_row, empty_table

OUTSIDE = "(none)"
TIMED = ("guided_s", "share", "unguided_s", "ratio", "flop", "mfu")
COUNTED = ("flop", "moved_bytes", "intensity")


def module_text(table: pd.DataFrame, what: str) -> Table:
    """Groups for a terminal, the longest first; without times what was counted.

    Args:
        table: from `sdbench.analysis.modules.module_table`.
        what: its first column: "kind", "block" or "part".
    """
    has_times = bool(table["guided_s"].notna().any())
    names = TIMED if has_times else COUNTED
    bound = ("bound by",) if has_times else ()
    heads = (what, *(MODULE[name].heading for name in names), *bound)
    shown = empty_table(heads, left=(what, *bound), no_wrap=(what,))
    for _, row in table.iterrows():
        cells = [
            MISSING if pd.isna(row[name]) else MODULE[name].format.text(row[name]) for name in names
        ]
        add_row(shown, [row[what] or OUTSIDE, *cells, *([row["bound"]] if has_times else [])])
    return shown


def schedule_text(table: pd.DataFrame) -> Table:
    """Loops of guided and unguided steps for a terminal, with the roof above them.

    Args:
        table: from `sdbench.analysis.modules.by_schedule`.
    """
    heads = ("variant", *(column.heading for column in LOOP.values()), "bound by")
    shown = empty_table(heads, left=("variant", "bound by"), no_wrap=("variant",))
    for _, row in table.iterrows():
        cells = [column.format.text(row[name]) for name, column in LOOP.items()]
        add_row(shown, [row["variant"], *cells, row["bound"]])
    return shown
