"""One file at a time: tables, JSON objects, images, lists of prompts; written whole or never.

What is read may come from anyone: whatever it holds, the reader gives it or raises a `ValueError`,
which names the file. Which files make a study is in `store.py`.
"""

import json
import os
import reprlib
import struct
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from sdbench.records.animations import SUFFIX, frames_of
from sdbench.records.pictures import as_rgb
from sdbench.records.schema import YOUNGER, columns
from sdbench.records.texts import lines_of, read_text

PREFIX = ".sdbench-"
"""Begins the names of the lock and of whatever is not finished; readers pass over them."""
SHOWN = 60  # characters of a prompt in an error
NUMBER = (int, float)
NONE = type(None)
_DTYPES = {
    pa.int64(): pd.Int64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.string(): pd.StringDtype(),
    pa.large_string(): pd.StringDtype(),
}
_TYPES = (*_DTYPES, pa.float64())
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error)  # what Pillow raises


def read_table(folder: Path, table: str, asked: Collection[str] | None = None) -> pd.DataFrame:
    """Read `TABLE.parquet` with the dtypes of the schema, unchecked.

    Columns that are younger than the file are missing values.

    Args:
        folder: of the file.
        table: its name.
        asked: the registered columns to read, by `with_key`; all when not given. Their text becomes
            categories, in order: a few bytes per row, and quickly grouped. What is not registered
            is always read.

    Raises:
        ValueError: the file is missing, not readable as Parquet, or holds a column of a kind that
            no table has.
    """
    registered = columns(table)
    texts = [name for name in asked or () if registered[name].dtype == "string"]
    arrow = _read_arrow(folder / f"{table}.parquet", registered, asked, texts)
    table_frame: pd.DataFrame = arrow.to_pandas(types_mapper=_DTYPES.get, ignore_metadata=True)

    for name in YOUNGER.get(table, ()):
        if name not in table_frame and (asked is None or name in asked):
            missing = [None] * len(table_frame)
            table_frame[name] = pd.Series(
                missing, index=table_frame.index, dtype=registered[name].dtype
            )

    for name in texts:
        if str(table_frame.dtypes.get(name)) in ("string", "category"):
            table_frame[name] = _in_order(table_frame[name].astype("category"))
    return table_frame


def _read_arrow(
    path: Path,
    registered: Collection[str],
    asked: Collection[str] | None,
    texts: Collection[str],
) -> Any:
    """The columns that were asked for and those that nobody registered, in Arrow's form."""
    try:
        with path.open("rb") as file:
            schema = pq.read_schema(file)
            chosen = [
                name
                for name in schema.names
                if asked is None or name in asked or name not in registered
            ]

            # What the schema calls text may be something else in the file, which is said below.
            as_text = {
                field.name for field in schema if field.type in (pa.string(), pa.large_string())
            }
            dictionaries = [name for name in texts if name in as_text]
            arrow = pq.ParquetFile(file, read_dictionary=dictionaries).read(chosen)

        # A damaged file can be read and still hold what crashes the conversion to pandas.
        arrow.validate(full=True)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {first_line(error)}") from None
    _require_plain(schema, path)
    return arrow


def _in_order(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """The same categories, sorted as text: groups then come in the order of text."""
    categories = values.cat.categories.astype("string").sort_values()
    return values.astype(pd.CategoricalDtype(categories))


def _require_plain(schema: Any, path: Path) -> None:
    """Refuse what pandas would make objects of, which no check of a column could compare."""
    for field in schema:
        if field.type not in _TYPES:
            expected = ", ".join(map(str, _TYPES))
            raise ValueError(f"{path}: column {field.name!r} is {field.type}; expected {expected}")
        if schema.names.count(field.name) > 1:
            raise ValueError(f"{path}: column {field.name!r} is there twice")


def write_table(folder: Path, table: str, table_frame: pd.DataFrame) -> None:
    """Write `TABLE.parquet`."""
    arrow = pa.Table.from_pandas(table_frame, preserve_index=False)
    write_whole(folder / f"{table}.parquet", lambda file: pq.write_table(arrow, file))


def read_prompts(file: Path, *, distinct: bool = True) -> tuple[str, ...]:
    """The prompts of a text file, one per line, without the blanks around them.

    Args:
        file: in UTF-8, or with a byte order mark.
        distinct: refuse a prompt that stands there twice.

    Raises:
        ValueError: the file cannot be read, or holds no prompt or the same one twice.
    """
    try:
        stripped = [line.lstrip("\ufeff").strip() for line in lines_of(read_text(file))]
    except (OSError, ValueError) as error:
        raise ValueError(f"prompts file '{file}' cannot be read: {error}") from None

    numbered = [(number, prompt) for number, prompt in enumerate(stripped, start=1) if prompt]
    if not numbered:
        raise ValueError(f"prompts file '{file}' has no prompt: expected one per line")
    if distinct:
        _require_distinct(numbered, file)
    return tuple(prompt for _, prompt in numbered)


def _require_distinct(numbered: Collection[tuple[int, str]], file: Path) -> None:
    """Refuse a prompt that stands on two lines."""
    first: dict[str, int] = {}
    for number, prompt in numbered:
        earlier = first.setdefault(prompt, number)
        if earlier != number:
            shown = prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}..."
            raise ValueError(
                f"prompts file '{file}' holds a prompt twice, on lines {earlier} and {number}: "
                f"{shown!r}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is missing, cannot be read or holds something else.
    """
    try:
        content = parsed(json.loads, read_text(path))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected an object")
    return content


def read_toml(path: Path, *, source: str) -> dict[str, Any]:
    """Read a TOML file; errors begin with the source.

    Raises:
        ValueError: the file cannot be read, or is not TOML.
    """
    try:
        return parsed(tomllib.loads, read_text(path))
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{source} is not TOML: {error}") from None


def parsed(parse: Callable[[str], Any], text: str) -> Any:
    """What a parser makes of a text.

    Raises:
        ValueError: as the parser says; a text that is nested deeper than the parser can follow.
    """
    try:
        return parse(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def require(
    content: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]], *, source: str
) -> None:
    """Check the kinds of an object's fields; a flag is no number.

    `NONE` among the kinds allows null and a missing field.

    Raises:
        ValueError: names the source and the first field that is of another kind.
    """
    for name, allowed in kinds.items():
        value = content.get(name)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            expected = " or ".join(kind.__name__ for kind in allowed)
            raise ValueError(f"{source}: {name!r} is {reprlib.repr(value)}; expected {expected}")


def inside(folder: Path, name: str) -> Path:
    """The file that a table or a list names by its path within their folder.

    Raises:
        ValueError: the path is absolute or leads out of the folder, be it through a link.
    """
    path = folder / name
    try:
        within = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # a null character
        within = False
    if not within or Path(name).is_absolute():
        raise ValueError(
            f"{folder}: the path {name!r} is refused, because it leads out of the folder"
        )
    return path


def read_image(path: Path) -> Image.Image:
    """An image in RGB, upright, on white where it is transparent; see `as_rgb`.

    Raises:
        ValueError: it is missing, or not readable as an image.
    """
    try:
        with Image.open(path) as image:
            return as_rgb(image)
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise ValueError(f"image '{path}' cannot be read: {first_line(error)}") from None


def read_pixels(path: Path) -> UInt8[np.ndarray, "*frames height width 3"]:
    """The pixels of an image, or of every frame of a video.

    Raises:
        ValueError: it is missing, or not readable as what its name says.
    """
    if path.suffix != SUFFIX:
        return np.asarray(read_image(path))
    try:
        with Image.open(path) as video:
            return frames_of(video)
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise ValueError(f"video '{path}' cannot be read: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """What an error says in its first line with words; its class where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next(filter(None, lines), type(error).__name__)


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
