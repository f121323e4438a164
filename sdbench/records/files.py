"""One file at a time: Parquet tables, JSON objects, lists of prompts; errors name the file; written whole or never.

Which files make a study is in `store.py`.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sdbench.records.schema import YOUNGER, columns

PREFIX = ".sdbench-"  # begins the name of the lock and of whatever is not finished; readers pass over it
_DTYPES = {
    pa.int64(): pd.Int64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.string(): pd.StringDtype(),
    pa.large_string(): pd.StringDtype(),
}


def read_table(folder: Path, table: str, asked: Collection[str] | None = None) -> pd.DataFrame:
    """Read `TABLE.parquet` with the dtypes of `schema.py`, unchecked; columns younger than the file are missing values.

    Args:
        folder: of the file.
        table: its name.
        asked: the registered columns to read, by `with_key`; all when not given. Their text becomes categories, in
            order: a few bytes per row, and quickly grouped. What is not registered is always read.

    Raises:
        ValueError: the file is missing or not readable as Parquet.
    """
    path = folder / f"{table}.parquet"
    registered = columns(table)
    texts = [name for name in asked or () if registered[name].dtype == "string"]
    try:
        with path.open("rb") as file:
            names = pq.read_schema(file).names
            chosen = [name for name in names if asked is None or name in asked or name not in registered]
            arrow = pq.ParquetFile(file, read_dictionary=[name for name in texts if name in names]).read(chosen)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
    table_frame: pd.DataFrame = arrow.to_pandas(types_mapper=_DTYPES.get, ignore_metadata=True)
    for name in YOUNGER.get(table, ()):
        if name not in table_frame and (asked is None or name in asked):
            missing = [None] * len(table_frame)
            table_frame[name] = pd.Series(missing, index=table_frame.index, dtype=registered[name].dtype)
    for name in texts:
        if str(table_frame.dtypes.get(name)) in ("string", "category"):
            table_frame[name] = _in_order(table_frame[name].astype("category"))
    return table_frame


def _in_order(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """The same categories, sorted as text: groups then come in the order in which those of text come."""
    categories = values.cat.categories.astype("string").sort_values()
    return values.astype(pd.CategoricalDtype(categories))


def write_table(folder: Path, table: str, table_frame: pd.DataFrame) -> None:
    """Write `TABLE.parquet`."""
    arrow = pa.Table.from_pandas(table_frame, preserve_index=False)
    write_whole(folder / f"{table}.parquet", lambda file: pq.write_table(arrow, file))


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a text file, one per line.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts file '{file}' cannot be read: {error}") from None
    return tuple(line.strip() for line in lines if line.strip())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected an object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(PREFIX + path.name)
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make a rename within a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
