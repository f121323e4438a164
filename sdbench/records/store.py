"""The disk form of a study: one folder, written by one process, and readable after it was killed.

A finished unit becomes one folder in `parts/` by a single rename. `compact` merges the parts into the tables and only
then drops them; until it has, a part overrides the table for its unit, so that a crash loses and doubles nothing.
A folder at a URL is written here, and copied there as it grows (`remote.py`). What a table holds is in `schema.py`.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from sdbench.records.environment import environment_key
from sdbench.records.files import (
    PREFIX,
    read_json,
    read_table,
    require,
    sync,
    write_json,
    write_table,
)
from sdbench.records.remote import Remote, is_own
from sdbench.records.schema import STUDY, SWEEP, TABLES, columns, empty, validate, with_key

SCHEMA_VERSION = 1
Mode = Literal["new", "resume", "overwrite"]
MODES = get_args(Mode)
Columns = Mapping[str, Collection[str]]
"""Names of columns by table."""
_AT_ONCE = 100  # parts whose frames are in memory beside each other: a frame takes far more than its few rows
_STARTING = f"{PREFIX}starting"  # there while a study's files are not all there yet, or no longer


@dataclass(frozen=True)
class Results:
    """What a study recorded; `environment` maps the keys in `runs.environment` to their descriptions."""

    folder: Path
    runs: pd.DataFrame
    steps: pd.DataFrame
    images: pd.DataFrame
    environment: dict[str, dict[str, Any]]
    study: dict[str, Any]


def read(folder: str | Path, columns: Columns | None = None) -> Results:
    """Read and check a study's folder, including units that are not merged yet.

    Of a URL (`s3://bucket/prefix`) the tables are read from a temporary copy, which has no images.

    Args:
        folder: of the study.
        columns: what to read of each table, with its key; all of every table when not given. They are checked as
            ever, but their text becomes categories, which take a few bytes per row and group quickly. Metrics that the
            schema does not know are always read.

    Raises:
        ValueError: the folder or a file is missing, unreadable or of another form; names the file and the column.
    """
    return Results(**_contents(folder, STUDY, columns))


@dataclass(frozen=True)
class Sweep:
    """What a sensitivity sweep recorded; `growth` is empty where it was not asked for."""

    folder: Path
    sensitivity: pd.DataFrame
    growth: pd.DataFrame
    environment: dict[str, dict[str, Any]]
    study: dict[str, Any]


def read_sweep(folder: str | Path) -> Sweep:
    """Read and check a sensitivity sweep's folder, as `read` does a study's.

    Raises:
        ValueError: the folder or a file is missing, unreadable or of another form; names the file and the column.
    """
    return Sweep(**_contents(folder, SWEEP))


class StudyFolder:
    """A study's folder, locked for this process; a context manager."""

    def __init__(
        self,
        path: Path,
        lock: int,
        tables: tuple[str, ...],
        beside: Sequence[str],
        remote: Remote | None,
    ) -> None:
        """Use `create`."""
        self.path = path
        self._lock = lock
        self._tables = tables
        self._beside = beside
        self._remote = remote
        self._part = max((int(part.name) for part in _parts(path)), default=0)

    @classmethod
    def create(
        cls,
        path: str | Path,
        study: Mapping[str, Any],
        *,
        environment: Mapping[str, Any],
        mode: Mode = "new",
        tables: tuple[str, ...] = STUDY,
        beside: Sequence[str] = (),
    ) -> Self:
        """Lock a folder for a study, and start, continue or replace the study in it.

        Args:
            path: made if it does not exist; a folder, or a URL of fsspec's, of which this is a temporary copy.
            study: what is studied, as JSON values; a resumed study must equal it.
            environment: as `add_environment` takes it.
            mode: `new` refuses a folder that holds a study, `resume` continues the same study, `overwrite` removes the
                old study's files; all three start a study in an empty folder.
            tables: what the folder holds; every unit has rows in the first of them.
            beside: names of files and folders that the caller keeps in it, which go when the study is replaced.

        Raises:
            ValueError: the folder does not fit the mode, holds something else, is in use, or cannot be written.
        """
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; there are {', '.join(MODES)}")
        remote = Remote.of(path)
        path = Path(path) if remote is None else _working_copy(remote, mode, tables)
        wanted = json.loads(json.dumps(dict(study)))
        existing_study(path)
        folder = cls(path, _lock(path), tables, beside, remote)
        try:
            folder._open(wanted, dict(environment), mode)
        except BaseException:
            folder.close()
            raise
        return folder

    def _open(self, study: dict[str, Any], environment: dict[str, Any], mode: str) -> None:
        existing = existing_study(self.path)
        if existing is not None and mode == "new":
            raise ValueError(
                f"{self._remote or self.path} already holds a study; --resume continues it, --overwrite replaces it"
            )
        if existing is not None and mode == "resume":
            # A field younger than the stored study is absent there, and was empty or off.
            keys = [
                key
                for key in existing | study
                if (existing.get(key) or None) != (study.get(key) or None)
            ]
            if keys:
                raise ValueError(
                    f"{self._remote or self.path} holds another study; it differs in {', '.join(keys)}"
                )
            self._sweep()
            self.add_environment(environment)
            return
        self._start(study, environment)

    def _start(self, study: dict[str, Any], environment: dict[str, Any]) -> None:
        """Put an empty study in the place of what is there; killed meanwhile, it leaves what counts as empty."""
        starting = self.path / _STARTING
        starting.touch()
        sync(self.path)
        self._remove()
        try:
            write_json(self.path / "environment.json", {environment_key(environment): environment})
            for table in self._tables:
                write_table(self.path, table, empty(table))
            write_json(self.path / "study.json", {"schema_version": SCHEMA_VERSION} | study)
            self._put(*map(_file, self._tables), "environment.json")
            self._put("study.json")
        except BaseException:
            self._remove()
            raise
        finally:
            starting.unlink()
            sync(self.path)

    def add_environment(self, environment: Mapping[str, Any]) -> str:
        """Add to the environments that the folder knows; returns its key, which runs name."""
        key = environment_key(environment)
        known = read_json(self.path / "environment.json")
        if key not in known:
            write_json(self.path / "environment.json", known | {key: dict(environment)})
            self._put("environment.json")
        return key

    def add(self, unit: str, **frames: pd.DataFrame) -> None:
        """Record a finished or failed unit, whole or not at all; it replaces what an earlier try recorded.

        Args:
            unit: its identifier.
            **frames: its rows of every table of the folder, by the table's name.

        Raises:
            ValueError: a frame does not fit its table or is not about this unit.
        """
        for table in self._tables:
            validate(frames[table], table, source=f"unit {unit!r}, {table}")
            if not (frames[table]["unit"] == unit).all() or (
                table == "runs" and len(frames[table]) != 1
            ):
                raise ValueError(
                    f"unit {unit!r}: {table} must hold rows of this unit only, and runs exactly one"
                )
        self._part += 1
        part = self.path / "parts" / f"{self._part:06d}"
        unfinished = part.with_name(PREFIX + part.name)
        try:
            unfinished.mkdir(parents=True)
            for table, table_frame in frames.items():
                write_table(unfinished, table, table_frame)
            unfinished.rename(part)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        sync(part.parent)
        first, *others = (f"parts/{part.name}/{_file(table)}" for table in self._tables)
        images = frames["images"]["path"].dropna() if "images" in frames else ()
        self._put(*images, *others)
        self._put(first)

    def recorded(self) -> set[str]:
        """Units that have rows, finished or not."""
        return set(_merged(self.path, self._tables)[self._tables[0]]["unit"])

    def finished(self) -> set[str]:
        """Units that ran and did not fail."""
        first = self._tables[0]
        needed = {first: {"status"} & columns(first).keys()}
        units = _merged(self.path, self._tables, needed)[first]
        return set(
            units.loc[units["status"] == "ok", "unit"] if "status" in units else units["unit"]
        )

    def compact(self) -> None:
        """Merge the parts into the tables."""
        if not _parts(self.path):
            return
        for table, table_frame in _merged(self.path, self._tables).items():
            write_table(self.path, table, table_frame)
        # One rename drops all parts at once: a part that had lost a file would be unreadable.
        (self.path / "parts").rename(self.path / f"{PREFIX}parts")
        self._sweep()
        self._put(*map(_file, self._tables))
        self._remove_there(lambda name: name.startswith("parts/"))

    def read(self, *tables: str) -> dict[str, pd.DataFrame]:
        """Some of the folder's tables, whole; the first of them must be its first."""
        return _merged(self.path, tables)

    def rewrite(self, table: str, table_frame: pd.DataFrame) -> None:
        """Replace a whole table, for example after its images were scored.

        Raises:
            ValueError: the frame does not fit the table.
        """
        validate(table_frame, table)
        self.compact()
        write_table(self.path, table, table_frame)
        self._put(_file(table))

    def close(self) -> None:
        """Release the lock."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        """The folder is locked since `create`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock."""
        self.close()

    def _put(self, *names: str) -> None:
        """Copy files to the remote place, if there is one."""
        if self._remote is not None:
            self._remote.put(self.path, names)

    def _remove_there(self, chosen: Callable[[str], bool]) -> None:
        """Remove files from the remote place, if there is one: first what makes parts count, last the study itself."""
        if self._remote is None:
            return
        names = [name for name in self._remote.files() if chosen(name)]
        firsts = {name for name in names if name.endswith(f"/{_file(self._tables[0])}")}
        self._remote.remove(firsts)
        self._remote.remove(name for name in names if name not in firsts and name != "study.json")
        self._remote.remove(name for name in names if name == "study.json")

    def _sweep(self) -> None:
        """Remove what a killed writer left unfinished."""
        for leftover in [*self.path.glob(f"{PREFIX}*"), *self.path.glob(f"parts/{PREFIX}*")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            elif leftover not in (_lock_file(self.path), self.path / _STARTING):
                leftover.unlink()

    def _remove(self) -> None:
        """Remove the study's own files and no others."""
        self._sweep()
        for name in ("parts", *self._beside):
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
        images = self.path / "images"
        if images.is_symlink():
            raise ValueError(f"{images} is a link: what is behind it is not the study's to remove")
        for image in images.rglob("*.png"):
            image.unlink()
        for folder in sorted([images, *images.rglob("*")], reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        for name in [*map(_file, TABLES), "environment.json", "study.json", *self._beside]:
            (self.path / name).unlink(missing_ok=True)
        self._remove_there(is_own)


def _file(table: str) -> str:
    return f"{table}.parquet"


def _working_copy(remote: Remote, mode: str, tables: tuple[str, ...]) -> Path:
    """A local folder to write in: with what is at the remote place, if anything is."""
    if remote.files():
        return remote.copied(tables[0], images=mode == "resume")
    return Path(tempfile.mkdtemp(prefix="sdbench-"))


def _lock_file(folder: Path) -> Path:
    return folder / f"{PREFIX}lock"


def _lock(folder: Path) -> int:
    """Descriptor that holds the folder's lock until it is closed, at the latest when the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(_lock_file(folder), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"{folder} is being written by another process") from None
    return descriptor


def existing_study(folder: Path) -> dict[str, Any] | None:
    """The study in a folder, None for an empty or missing folder; anything else is refused."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if (folder / _STARTING).exists():
        return None
    if (folder / "study.json").exists():
        return _read_study(folder)
    if any(not entry.name.startswith(PREFIX) for entry in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no study; choose another folder")
    return None


def _parts(folder: Path) -> list[Path]:
    """Parts from the oldest to the newest."""
    return sorted(part for part in folder.glob("parts/*") if part.name.isdecimal())


def _contents(
    place: str | Path, tables: tuple[str, ...], needed: Columns | None = None
) -> dict[str, Any]:
    """The folder itself, its tables, its environments and its study, by name."""
    remote = Remote.of(place)
    folder = Path(place) if remote is None else remote.copied(tables[0], images=False)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    study = _read_study(folder)
    environments = read_json(folder / "environment.json")
    require(
        environments, dict.fromkeys(environments, (dict,)), source=str(folder / "environment.json")
    )
    if not environments:
        raise ValueError(f"{folder / 'environment.json'} describes no environment")
    return {
        "folder": folder,
        **_merged(folder, tables, needed),
        "environment": environments,
        "study": study,
    }


def _merged(
    folder: Path, tables: tuple[str, ...], needed: Columns | None = None
) -> dict[str, pd.DataFrame]:
    """The folder's tables; of a unit recorded more than once the newest part counts, in every table.

    Args:
        folder: of a study.
        tables: every unit is in the first.
        needed: columns by table, as for `read`.
    """
    asked: dict[str, tuple[str, ...] | None] = dict.fromkeys(tables)
    if needed is not None:
        asked |= {
            table: with_key(table, needed.get(table, ()))
            for table in dict.fromkeys((*tables, *needed))
        }
    # Parts before tables: a part that is merged meanwhile is then seen twice rather than not at all.
    folders = _parts(folder)
    starts = range(0, len(folders), _AT_ONCE)
    parts = [
        _several(folders[start : start + _AT_ONCE], tables, asked, start + 1) for start in starts
    ]
    whole = _whole(folder, tables, asked)
    if not parts:
        return whole
    sources = [
        {
            table: (table_frame, np.zeros(len(table_frame), int))
            for table, table_frame in whole.items()
        },
        *parts,
    ]
    newest: dict[str, int] = {}
    for source in sources:
        table_frame, ages = source[tables[0]]
        newest.update(zip(table_frame["unit"], ages, strict=True))
    merged = {}
    for table in tables:
        kept = [
            rows[rows["unit"].map(newest).to_numpy(float) == ages]
            for rows, ages in (each[table] for each in sources)
        ]
        # Each part was checked when it was added; this is about all of them together.
        merged[table] = validate(
            _joined(kept), table, asked=asked[table], source=f"{folder}, {table}"
        )
    return merged


def _several(
    folders: list[Path],
    tables: tuple[str, ...],
    asked: Mapping[str, tuple[str, ...] | None],
    first: int,
) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """The tables of some parts, joined, and for every row the number of its part; the first part's is given."""
    found = {}
    for table in tables:
        frames = [_part(part, table, asked[table]) for part in folders]
        ages = np.repeat(np.arange(first, first + len(frames)), [len(rows) for rows in frames])
        found[table] = (_joined(frames), ages)
    return found


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


def _whole(
    folder: Path, tables: tuple[str, ...], asked: Mapping[str, tuple[str, ...] | None]
) -> dict[str, pd.DataFrame]:
    """The merged tables; a row of a unit that the first table does not know is an error."""
    whole: dict[str, pd.DataFrame] = {}
    for table in tables:
        source = str(folder / f"{table}.parquet")
        whole[table] = validate(
            read_table(folder, table, asked[table]), table, asked=asked[table], source=source
        )
        units, known = (
            pd.Index(whole[name]["unit"].unique()).astype("string") for name in (table, tables[0])
        )
        strangers = units[known.get_indexer(units) < 0]
        if len(strangers):
            raise ValueError(
                f"{source}: column 'unit' holds {min(strangers)!r}, not in {tables[0]}.parquet"
            )
    return whole


def _read_study(folder: Path) -> dict[str, Any]:
    if (folder / _STARTING).exists():
        raise ValueError(
            f"{folder} holds no study yet: its writer is starting, or was killed when it was"
        )
    study = read_json(folder / "study.json")
    version = study.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{folder / 'study.json'}: schema_version is {version}; expected {SCHEMA_VERSION}"
        )
    return study
