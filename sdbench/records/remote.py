"""A study's folder where fsspec reaches it, such as `s3://bucket/prefix`: a copy of the local one.

Files come and go one at a time there, and nothing can be renamed. So the file that makes a part or
a study count is put last and removed first, and a reader finds a whole study at any time. Nothing
is locked there: one writer at a time. What is put when is in `store.py`.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Self

from fsspec.core import url_to_fs

from sdbench.records.animations import SUFFIX
from sdbench.records.schema import TABLES

_FILES = {"study.json", "environment.json", *(f"{table}.parquet" for table in TABLES)}


class Remote:
    """The files below a URL, by their paths from there."""

    def __init__(self, url: str) -> None:
        """Open a URL.

        Raises:
            ValueError: a protocol that is unknown, or whose package is not installed.
        """
        try:
            self._system, root = url_to_fs(url)
        except ImportError as error:
            raise ValueError(f"{url}: {error}; for S3: pip install 'sdbench[s3]'") from None
        self._url = url
        self._root = root.rstrip("/")

    @classmethod
    def of(cls, place: str | Path) -> Self | None:
        """What a URL stands for; None for a path on this machine."""
        return cls(place) if isinstance(place, str) and "://" in place else None

    def __str__(self) -> str:
        return self._url

    def files(self) -> list[str]:
        """What is there, a study's own or not."""
        self._system.invalidate_cache()
        with self._errors():
            try:
                paths = self._system.find(self._root)
            except FileNotFoundError:  # not even a bucket
                return []
        return [str(path).removeprefix(f"{self._root}/") for path in paths]

    def copied(self, first_table: str, *, images: bool) -> Path:
        """A copy of the study in a new temporary folder, without parts that are not whole.

        Args:
            first_table: the table that makes a part count.
            images: copy them, too.

        Raises:
            ValueError: there is no study.
        """
        files = self.files()
        if "study.json" not in files:
            raise ValueError(f"{self._url} holds no study")

        # A part whose first table is not there yet, or no longer, does not count.
        parts = _parts_with(first_table, files)
        kept = [
            name
            for name in files
            if name in _FILES or _folder(name) in parts or (images and is_image(name))
        ]

        folder = Path(tempfile.mkdtemp(prefix="sdbench-"))
        for parent in {(folder / name).parent for name in kept}:
            parent.mkdir(parents=True, exist_ok=True)

        there = [self._at(name) for name in kept]
        here = [str(folder / name) for name in kept]
        with self._errors():
            self._system.get(there, here)
        return folder

    def put(self, folder: Path, names: Iterable[str]) -> None:
        """Copy files of a local folder to here, in any order."""
        names = list(names)
        with self._errors():
            for parent in {str(PurePosixPath(self._at(name)).parent) for name in names}:
                self._system.makedirs(parent, exist_ok=True)
            self._system.put(
                [str(folder / name) for name in names], [self._at(name) for name in names]
            )

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, in any order."""
        there = [self._at(name) for name in names]
        if there:
            with self._errors():
                self._system.rm(there)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Every protocol has its own errors; here they are one, with the URL."""
        try:
            yield
        except Exception as error:
            raise OSError(f"{self._url}: {type(error).__name__}: {error}") from error


def _parts_with(table: str, files: Iterable[str]) -> set[str]:
    """The folders of the parts that have a table."""
    return {
        _folder(name) for name in files if PurePosixPath(name).match(f"parts/*/{table}.parquet")
    }


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def is_image(name: str) -> bool:
    """Whether a path within a study's folder is one of its images or videos."""
    return name.startswith("images/") and name.endswith((".png", SUFFIX))


def is_own(name: str) -> bool:
    """Whether a path within a study's folder is the study's, and not somebody else's."""
    return name in _FILES or name.startswith("parts/") or is_image(name)
