"""The pieces of a table: cells with their intervals, an empty table, lines of Markdown."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from sdbench.analysis.stability import is_undecided
from sdbench.records.columns import Format
from sdbench.report.disturbance import SAVING, WORD

MISSING = "-"


def interval_text(row: "pd.Series[Any]", name: str, form: Format, *, between: str = ",") -> str:
    """An estimate with the ends of its interval behind it; alone where these are missing.

    Of a saving whose interval is too wide a word says so instead.
    """
    estimate, lo, hi = (row.get(column, math.nan) for column in (name, f"{name}_lo", f"{name}_hi"))
    if pd.isna(lo):
        return form.text(estimate)
    if name.endswith(SAVING) and is_undecided(lo, hi):
        return WORD
    return f"{form.text(estimate)} [{form.text(lo)}{between}{form.text(hi)}]"


def empty_table(
    headings: Iterable[str], *, left: Sequence[str], no_wrap: Sequence[str] = (), note: str = ""
) -> Table:
    """A table for a terminal, without rows.

    Args:
        headings: of its columns.
        left: those whose columns are text, not numbers.
        no_wrap: those whose columns must stay in one line.
        note: what stands above the table.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    put_above(table, note)
    for heading in headings:
        table.add_column(
            heading,
            justify="left" if heading in left else "right",
            no_wrap=heading in no_wrap,
        )
    return table


def put_above(table: Table, note: str) -> None:
    """Put a note above a table for a terminal, as it is; an empty one leaves no line."""
    table.title = Text(note, style="bold", justify="left") if note else None


def add_row(table: Table, cells: Iterable[str]) -> None:
    """Add a row as it is: what stands in brackets is no markup."""
    table.add_row(*map(Text, cells))


def markdown_lines(lines: Iterable[Iterable[str]]) -> str:
    """Rows of cells as lines of a Markdown table, without a line break at its end."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
