"""The tables of a study's folder and its parts: merged, so that of a unit the newest rows count.

A finished unit is one folder in `parts/`, with a file per table. Who writes and drops parts is in
`store.py`; what makes a folder a study is in `results.py`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from sdbench.records.files import read_table
from sdbench.records.schema import columns, validate, with_key

Columns = Mapping[str, Collection[str]]
"""Names of columns by table."""
_Asked = Mapping[str, tuple[str, ...] | None]
"""Columns to read by table; None for all of them."""
_Aged = dict[str, tuple[pd.DataFrame, np.ndarray]]
"""A frame by table, and for each of its rows the number of the part that it comes from."""
_AT_ONCE = 100  # parts whose frames are in memory together: a frame takes far more than its rows


def table_file(table: str) -> str:
    """The name of a table's file."""
    return f"{table}.parquet"


def part_folders(folder: Path) -> list[Path]:
    """Parts from the oldest to the newest."""
    return sorted(part for part in folder.glob("parts/*") if part.name.isdecimal())


def merged(
    folder: Path, tables: tuple[str, ...], needed: Columns | None = None
) -> dict[str, pd.DataFrame]:
    """The folder's tables; of a unit recorded more than once the newest part counts, in each table.

    Args:
        folder: of a study.
        tables: every unit is in the first.
        needed: columns by table, as for `read`.

    Raises:
        ValueError: a file is missing, unreadable or of another form; names it and the column.
    """
    asked = _asked(tables, needed)

    # Parts before tables: a part that is merged meanwhile is then seen twice, not missed.
    folders = part_folders(folder)
    starts = range(0, len(folders), _AT_ONCE)
    parts = [
        _several(folders[start : start + _AT_ONCE], tables, asked, start + 1) for start in starts
    ]
    whole = _whole(folder, tables, asked)
    if not parts:
        return whole

    # The tables are older than any part, whose numbers begin with 1.
    base = {table: (rows, np.zeros(len(rows), int)) for table, rows in whole.items()}
    sources: list[_Aged] = [base, *parts]
    newest: dict[str, int] = {}
    for source in sources:
        table_frame, ages = source[tables[0]]
        newest.update(zip(table_frame["unit"], ages, strict=True))

    # Each part was checked when it was added; this is about all of them together.
    return {
        table: validate(
            _newest([source[table] for source in sources], newest),
            table,
            asked=asked[table],
            source=f"{folder}, {table}",
        )
        for table in tables
    }


def _asked(tables: tuple[str, ...], needed: Columns | None) -> _Asked:
    """The columns to read of every table, each with its key."""
    if needed is None:
        return dict.fromkeys(tables)
    return {
        table: with_key(table, needed.get(table, ())) for table in dict.fromkeys((*tables, *needed))
    }


def _newest(
    sources: list[tuple[pd.DataFrame, np.ndarray]], newest: Mapping[str, int]
) -> pd.DataFrame:
    """The rows whose part is their unit's newest."""
    return _joined(
        [rows[rows["unit"].map(newest).to_numpy(float) == ages] for rows, ages in sources]
    )


def _several(folders: list[Path], tables: tuple[str, ...], asked: _Asked, first: int) -> _Aged:
    """The tables of some parts, joined, with the ages of their rows; `first` is the first's age."""
    joined = {}
    for table in tables:
        frames = [_part(part, table, asked[table]) for part in folders]
        ages = np.repeat(np.arange(first, first + len(frames)), [len(rows) for rows in frames])
        joined[table] = (_joined(frames), ages)
    return joined


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Frames below each other; `pd.concat` alone makes objects of categories that differ."""
    frames = [table_frame for table_frame in frames if len(table_frame)] or frames[:1]
    joined = pd.concat(frames, ignore_index=True)
    for name, dtype in frames[0].dtypes.items():
        if dtype == "category":
            joined[name] = union_categoricals([part[name] for part in frames], sort_categories=True)
    return joined


def _part(folder: Path, table: str, asked: Collection[str] | None) -> pd.DataFrame:
    """A table of a part, which has at least the columns that are asked for."""
    part = read_table(folder, table, asked)
    missing = [name for name in (columns(table) if asked is None else asked) if name not in part]
    if missing:
        raise ValueError(f"{folder / table}.parquet: column {missing[0]!r} is missing")
    return part


def _whole(folder: Path, tables: tuple[str, ...], asked: _Asked) -> dict[str, pd.DataFrame]:
    """The merged tables; a row of a unit that the first table does not know is an error."""
    whole: dict[str, pd.DataFrame] = {}
    for table in tables:
        source = str(folder / table_file(table))
        stored = read_table(folder, table, asked[table])
        whole[table] = validate(stored, table, asked=asked[table], source=source)

        units, of_first = (
            pd.Index(whole[name]["unit"].unique()).astype("string") for name in (table, tables[0])
        )
        strangers = units[of_first.get_indexer(units) < 0]
        if len(strangers):
            raise ValueError(
                f"{source}: column 'unit' holds {min(strangers)!r}, not in {tables[0]}.parquet"
            )
    return whole
