"""What a study or a sweep recorded, read and checked; and whether a folder holds one.

Which rows of a folder count is in `parts.py`; a folder is written in `store.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from sdbench.records.files import PREFIX, read_json, read_table, require
from sdbench.records.parts import Columns, merged, table_file
from sdbench.records.remote import Remote
from sdbench.records.schema import STUDY, SWEEP, empty, validate

SCHEMA_VERSION = 1
STARTING = f"{PREFIX}starting"
"""A file that is there while a study's files are not all there yet, or no longer."""


@dataclass(frozen=True)
class Results:
    """What a study recorded; `environment` describes each key in `runs.environment`.

    `known` is empty for a study without known answers.
    """

    folder: Path
    runs: pd.DataFrame
    steps: pd.DataFrame
    images: pd.DataFrame
    environment: dict[str, dict[str, Any]]
    study: dict[str, Any]
    known: pd.DataFrame = field(default_factory=partial(empty, "known"))


def read(folder: str | Path, columns: Columns | None = None) -> Results:
    """Read and check a study's folder, including units that are not merged yet.

    Of a URL (`s3://bucket/prefix`) the tables are read from a temporary copy, which has no images.

    Args:
        folder: of the study.
        columns: what to read of each table, with its key; all of every table when not given. They
            are checked all the same, but their text becomes categories, which take a few bytes per
            row and group quickly. Metrics that the schema does not know are always read.

    Raises:
        ValueError: the folder or a file is missing, unreadable or of another form; names the file
            and the column.
    """
    found = contents(folder, STUDY, columns)
    return Results(**found, known=read_known(found["folder"]))


def read_known(folder: Path) -> pd.DataFrame:
    """The table of known answers in a study's folder, empty where it has none.

    Raises:
        ValueError: the file is unreadable or of another form.
    """
    file = folder / table_file("known")
    if not file.exists():
        return empty("known")
    return validate(read_table(folder, "known"), "known", source=str(file))


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
        ValueError: the folder or a file is missing, unreadable or of another form; names the file
            and the column.
    """
    return Sweep(**contents(folder, SWEEP))


def contents(
    place: str | Path, tables: tuple[str, ...], needed: Columns | None = None
) -> dict[str, Any]:
    """The folder itself, its tables, its environments and its study, by name."""
    remote = Remote.of(place)
    folder = Path(place) if remote is None else remote.copied(tables[0], images=False)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    study = read_study(folder)

    # Every run names its environment, so a study without any is damaged.
    file = folder / "environment.json"
    environments = read_json(file)
    require(environments, dict.fromkeys(environments, (dict,)), source=str(file))
    if not environments:
        raise ValueError(f"{file} describes no environment")

    return {
        "folder": folder,
        **merged(folder, tables, needed),
        "environment": environments,
        "study": study,
    }


def read_study(folder: Path) -> dict[str, Any]:
    """The record of a study in its folder.

    Raises:
        ValueError: there is none, its writer is still starting, or it is of another version.
    """
    if (folder / STARTING).exists():
        raise ValueError(
            f"{folder} holds no study yet: a run is starting there, or was killed at its start"
        )
    study = read_json(folder / "study.json")
    version = study.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{folder / 'study.json'}: schema_version is {version}; expected {SCHEMA_VERSION}"
        )
    return study


def existing_study(folder: Path) -> dict[str, Any] | None:
    """The study in a folder, None for an empty or missing folder.

    Raises:
        ValueError: it is no folder, or holds something else.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    # A writer that was killed while starting left nothing that counts.
    if (folder / STARTING).exists():
        return None
    if (folder / "study.json").exists():
        return read_study(folder)
    if any(not entry.name.startswith(PREFIX) for entry in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no study; choose another folder")
    return None


def differing(existing: Mapping[str, Any], study: Mapping[str, Any]) -> list[str]:
    """Fields in which two studies differ; of a pipeline, the components with both values.

    A field younger than the stored study is absent there, and was empty or off.
    """
    fields = [
        field
        for field in {**existing, **study}
        if (existing.get(field) or None) != (study.get(field) or None)
    ]
    there, here = existing.get("pipeline"), study.get("pipeline")
    if "pipeline" in fields and there and here:
        fields.remove("pipeline")
        fields += [
            f"its pipeline's {name} ({there.get(name)}, now {here.get(name)})"
            for name in {**there, **here}
            if there.get(name) != here.get(name)
        ]
    return fields
