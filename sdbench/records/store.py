"""The disk form of a study: one folder, written by one process, and readable after it was killed.

A finished unit becomes one folder in `parts/` by a single rename. `compact` merges the parts into
the tables and only then drops them; until it has, a part overrides the table for its unit, so that
a crash loses and doubles nothing. A folder at a URL is written here, and copied there as it grows
(`remote.py`). What reads a folder is in `results.py`, what a table holds in `schema.py`.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import pandas as pd

from sdbench.records.animations import SUFFIX
from sdbench.records.environment import environment_key
from sdbench.records.files import PREFIX, read_json, sync, write_json, write_table
from sdbench.records.parts import Columns, merged, part_folders, table_file
from sdbench.records.remote import Remote, is_own
from sdbench.records.results import (
    SCHEMA_VERSION,
    STARTING,
    Results,
    Sweep,
    differing,
    existing_study,
    read,
    read_sweep,
)
from sdbench.records.schema import STUDY, TABLES, columns, empty, validate

__all__ = [
    "MODES",
    "SCHEMA_VERSION",
    "Columns",
    "Mode",
    "Results",
    "StudyFolder",
    "Sweep",
    "differing",
    "existing_study",
    "read",
    "read_sweep",
]

Mode = Literal["new", "resume", "overwrite"]
MODES = get_args(Mode)


class StudyFolder:
    """A study's folder, locked for this process; a context manager."""

    def __init__(
        self,
        path: Path,
        lock: int,
        tables: tuple[str, ...],
        companions: Sequence[str],
        remote: Remote | None,
    ) -> None:
        """Use `create`."""
        self.path = path
        self._lock = lock
        self._tables = tables
        self._companions = companions
        self._remote = remote
        self._part = max((int(part.name) for part in part_folders(path)), default=0)

    @classmethod
    def create(
        cls,
        path: str | Path,
        study: Mapping[str, Any],
        *,
        environment: Mapping[str, Any],
        mode: Mode = "new",
        tables: tuple[str, ...] = STUDY,
        companions: Sequence[str] = (),
    ) -> Self:
        """Lock a folder for a study, and start, continue or replace the study in it.

        Args:
            path: made if it does not exist; a folder, or a URL of fsspec's, of which this is a
                temporary copy.
            study: what is studied, as JSON values; a resumed study must equal it.
            environment: as `add_environment` takes it.
            mode: `new` refuses a folder that holds a study, `resume` continues the same study,
                `overwrite` removes the old study's files; all three start a study in an empty
                folder.
            tables: what the folder holds; every unit has rows in the first of them.
            companions: names of files and folders that the caller keeps in it, which go when the
                study is replaced.

        Raises:
            ValueError: the folder does not fit the mode, holds something else, is in use, or
                cannot be written.
        """
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; there are {', '.join(MODES)}")
        remote = Remote.of(path)
        path = Path(path) if remote is None else _working_copy(remote, mode, tables)
        wanted = json.loads(json.dumps(dict(study)))

        # A folder that holds something else gets no lock file, either.
        existing_study(path)
        folder = cls(path, _lock(path), tables, companions, remote)
        try:
            folder._open(wanted, dict(environment), mode)
        except BaseException:
            folder.close()
            raise
        return folder

    def _open(self, study: dict[str, Any], environment: dict[str, Any], mode: str) -> None:
        existing = existing_study(self.path)
        place = self._remote or self.path
        if existing is not None and mode == "new":
            raise ValueError(
                f"{place} already holds a study; --resume continues it, --overwrite replaces it"
            )
        if existing is None or mode != "resume":
            self._start(study, environment)
            return

        fields = differing(existing, study)
        if fields:
            raise ValueError(f"{place} holds another study; it differs in {', '.join(fields)}")
        self._sweep()
        self.add_environment(environment)

    def _start(self, study: dict[str, Any], environment: dict[str, Any]) -> None:
        """Replace what is there by an empty study; if killed, leave what counts as empty."""
        starting = self.path / STARTING
        starting.touch()
        sync(self.path)
        self._remove()

        # The study itself comes last: what has none is not read.
        try:
            write_json(self.path / "environment.json", {environment_key(environment): environment})
            for table in self._tables:
                write_table(self.path, table, empty(table))
            write_json(self.path / "study.json", {"schema_version": SCHEMA_VERSION} | study)
            self._put(*map(table_file, self._tables), "environment.json")
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
        environments = read_json(self.path / "environment.json")
        if key not in environments:
            write_json(self.path / "environment.json", environments | {key: dict(environment)})
            self._put("environment.json")
        return key

    def add(self, unit: str, **frames: pd.DataFrame) -> None:
        """Record a finished or failed unit, whole or not at all; it replaces an earlier try's rows.

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

        # A reader sees the part after its rename: with all of its tables, or not at all.
        try:
            unfinished.mkdir(parents=True)
            for table, table_frame in frames.items():
                write_table(unfinished, table, table_frame)
            unfinished.rename(part)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        sync(part.parent)

        # The first table makes the part count at the remote place, so it goes last.
        first, *others = (f"parts/{part.name}/{table_file(table)}" for table in self._tables)
        images = frames["images"]["path"].dropna() if "images" in frames else ()
        self._put(*images, *others)
        self._put(first)

    def recorded(self) -> set[str]:
        """Units that have rows, finished or not."""
        return set(merged(self.path, self._tables)[self._tables[0]]["unit"])

    def finished(self) -> set[str]:
        """Units that ran and did not fail."""
        first = self._tables[0]
        needed = {first: {"status"} & columns(first).keys()}
        units = merged(self.path, self._tables, needed)[first]
        return set(
            units.loc[units["status"] == "ok", "unit"] if "status" in units else units["unit"]
        )

    def compact(self) -> None:
        """Merge the parts into the tables."""
        if not part_folders(self.path):
            return
        for table, table_frame in merged(self.path, self._tables).items():
            write_table(self.path, table, table_frame)
        # One rename drops all parts at once: a part that had lost a file would be unreadable.
        (self.path / "parts").rename(self.path / f"{PREFIX}parts")
        self._sweep()
        self._put(*map(table_file, self._tables))
        self._remove_there(lambda name: name.startswith("parts/"))

    def read(self, *tables: str) -> dict[str, pd.DataFrame]:
        """Some of the folder's tables, whole; the first of them must be its first."""
        return merged(self.path, tables)

    def rewrite(self, table: str, table_frame: pd.DataFrame) -> None:
        """Replace a whole table, for example after its images were scored.

        Raises:
            ValueError: the frame does not fit the table.
        """
        validate(table_frame, table)
        self.compact()
        write_table(self.path, table, table_frame)
        self._put(table_file(table))

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
        """Remove files from the remote place, if there is one.

        What makes parts count goes first, the study itself last.
        """
        if self._remote is None:
            return
        names = [name for name in self._remote.files() if chosen(name)]
        firsts = {name for name in names if name.endswith(f"/{table_file(self._tables[0])}")}
        self._remote.remove(firsts)
        self._remote.remove(name for name in names if name not in firsts and name != "study.json")
        self._remote.remove(name for name in names if name == "study.json")

    def _sweep(self) -> None:
        """Remove what a killed writer left unfinished."""
        for leftover in [*self.path.glob(f"{PREFIX}*"), *self.path.glob(f"parts/{PREFIX}*")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            elif leftover not in (_lock_file(self.path), self.path / STARTING):
                leftover.unlink()

    def _remove(self) -> None:
        """Remove the study's own files and no others."""
        self._sweep()
        for name in ("parts", *self._companions):
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)

        # Images are the study's, but a folder among them may hold somebody else's files.
        images = self.path / "images"
        if images.is_symlink():
            raise ValueError(
                f"{images} is a link, so its target is not deleted: remove the link yourself"
            )
        for image in [*images.rglob("*.png"), *images.rglob(f"*{SUFFIX}")]:
            image.unlink()
        for folder in sorted([images, *images.rglob("*")], reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

        for name in [*map(table_file, TABLES), "environment.json", "study.json", *self._companions]:
            (self.path / name).unlink(missing_ok=True)
        self._remove_there(is_own)


def _working_copy(remote: Remote, mode: str, tables: tuple[str, ...]) -> Path:
    """A local folder to write in: with what is at the remote place, if anything is."""
    if remote.files():
        return remote.copied(tables[0], images=mode == "resume")
    return Path(tempfile.mkdtemp(prefix="sdbench-"))


def _lock_file(folder: Path) -> Path:
    return folder / f"{PREFIX}lock"


def _lock(folder: Path) -> int:
    """Descriptor that holds the folder's lock until it is closed or the process ends."""
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
