"""What a table must hold: its columns by name, empty and filled frames, and the check of a frame.

The columns themselves are in `columns.py` and `stored.py`; nothing here reads or writes files.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from sdbench.records.columns import METRICS, Column
from sdbench.records.stored import (
    FURTHER_METRIC,
    HISTORY,
    KEYS,
    LEDGER,
    MODULES,
    OF_VIDEOS,
    PLANS,
    SPENDING,
    STUDY,
    SWEEP,
    TABLES,
    TRAINING,
    WITH_METRICS,
    YOUNGER,
)

__all__ = [
    "HISTORY",
    "KEYS",
    "LEDGER",
    "METRICS",
    "MODULES",
    "OF_VIDEOS",
    "PLANS",
    "SPENDING",
    "STUDY",
    "SWEEP",
    "TABLES",
    "TRAINING",
    "WITH_METRICS",
    "YOUNGER",
    "Column",
    "columns",
    "describe",
    "empty",
    "frame",
    "validate",
    "with_key",
]


def columns(table: str) -> dict[str, Column]:
    """Columns of a table by name, in order.

    Raises:
        ValueError: there is no such table.
    """
    if table not in TABLES:
        raise ValueError(f"unknown table {table!r}; there are {', '.join(TABLES)}")
    return TABLES[table]


def with_key(table: str, names: Collection[str]) -> tuple[str, ...]:
    """Some columns of a table with its key and its unit, in the table's order.

    Without these two nobody sees a row that is there twice, or that belongs to no unit.

    Raises:
        ValueError: there is no such table or column.
    """
    registered = columns(table)
    unknown = [name for name in names if name not in registered]
    if unknown:
        raise ValueError(f"{table} has no column {unknown[0]!r}; there are {', '.join(registered)}")
    return tuple(name for name in registered if name in {"unit", *KEYS[table], *names})


def validate(
    table_frame: pd.DataFrame,
    table: str,
    *,
    asked: Collection[str] | None = None,
    source: str | None = None,
) -> pd.DataFrame:
    """Check a frame against the registry; it comes back with its columns in the registry's order.

    Args:
        table_frame: the frame.
        table: its name in `TABLES`.
        asked: the registered columns that were read, by `with_key`, text as categories; all, as
            text, when not given.
        source: what to call the frame in an error, usually its file.

    Raises:
        ValueError: names the source, the first wrong column, and what was expected of it.
    """
    registered = columns(table)
    expected = {
        name: column for name, column in registered.items() if asked is None or name in asked
    }

    # Anyone may register a metric; its column is known by its dtype alone.
    if table in WITH_METRICS:
        further = OF_VIDEOS[table]
        expected |= {
            str(name): further.get(str(name), FURTHER_METRIC)
            for name in table_frame
            if name not in registered
        }

    fault = _frame_fault(table_frame, expected, text="string" if asked is None else "category")
    if fault is None and table_frame.duplicated(KEYS[table]).any():
        fault = f"a row is there twice; {', '.join(KEYS[table])} must differ"

    if fault is not None:
        raise ValueError(f"{source or table}: {fault}")
    return table_frame[list(expected)]


def frame(table: str, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Build a table from rows; a column that a row does not name is missing in that row.

    Raises:
        ValueError: a value does not fit its column, a required one is missing, or a name is
            unknown.
    """
    dtypes = {name: column.dtype for name, column in columns(table).items()}
    further = OF_VIDEOS.get(table, {})
    extra = {
        name: further.get(name, FURTHER_METRIC).dtype
        for row in rows
        for name in row
        if name not in dtypes
    }
    if extra and table not in WITH_METRICS:
        raise ValueError(f"{table}: unexpected column {next(iter(extra))!r}")

    typed = {}
    # Built column by column: pandas guesses other dtypes from rows, and an error names its column.
    for name, dtype in (dtypes | extra).items():
        try:
            typed[name] = pd.Series([row.get(name) for row in rows], dtype=dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{table}: column {name!r} must be {dtype}: {error}") from None

    return validate(pd.DataFrame(typed), table)


def empty(table: str) -> pd.DataFrame:
    """A table without rows, with the right dtypes."""
    return pd.DataFrame(
        {name: pd.Series(dtype=column.dtype) for name, column in columns(table).items()}
    )


def describe(table: str) -> pd.DataFrame:
    """What a table's columns mean: one row per column with `name`, `dtype`, `unit`, `meaning`.

    Behind them come those that the table has of videos alone.
    """
    every = columns(table) | OF_VIDEOS.get(table, {})
    return pd.DataFrame(
        [(name, column.dtype, column.unit, column.meaning) for name, column in every.items()],
        columns=["name", "dtype", "unit", "meaning"],
    )


def _frame_fault(
    table_frame: pd.DataFrame, expected: Mapping[str, Column], *, text: str
) -> str | None:
    """What is wrong first with a frame's columns, in words; `text` is the dtype of text."""
    for name, column in expected.items():
        if name not in table_frame:
            return f"column {name!r} is missing; expected {column.dtype}"

    strange = [name for name in table_frame if name not in expected]
    if strange:
        return f"column {strange[0]!r} is not one of the table's"

    for name, column in expected.items():
        fault = _column_fault(table_frame[name], column, text)
        if fault is not None:
            return f"column {name!r} {fault}"
    return None


def _column_fault(values: "pd.Series[Any]", column: Column, text: str) -> str | None:
    """What is wrong first with one column; each check passes over its values once."""
    if str(values.dtype) != (text if column.dtype == "string" else column.dtype):
        return f"is {values.dtype!r}; expected {column.dtype}"
    if not column.nullable and values.isna().any():
        return f"has missing values; expected {column.dtype} in every row"
    if column.minimum is not None and (values < column.minimum).any():
        return f"holds {values.min()}; expected at least {column.minimum:g}"
    # Few distinct values: each is looked up once, however many rows there are.
    if not column.choices:
        return None
    given = values.dropna().unique()  # what may be missing was seen above
    strange = [value for value in given if value not in column.choices]
    if strange:
        return f"holds {str(strange[0])!r}; expected one of {', '.join(column.choices)}"
    return None
