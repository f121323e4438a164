"""The parts of a study that ran apart (`sdbench run --shard i/n`), put together."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sdbench.records.files import inside
from sdbench.records.schema import STUDY
from sdbench.records.store import Mode, Results, StudyFolder, differing, read
from sdbench.study.known import known_answers
from sdbench.study.runner import inactive_failed
from sdbench.study.units import Shard, parse_shard


def gather(out: str | Path, shards: Iterable[str | Path], *, mode: Mode = "new") -> Results:
    """Put the folders of all shards of a study into one, as if it had run in one piece.

    A warm-up that several shards ran is kept once.

    Args:
        out: the study's folder.
        shards: folders on this machine, one per shard, in any order.
        mode: "new" or "overwrite", for a folder that holds a study already.

    Raises:
        ValueError: a folder that is no shard's, shards of different studies, a shard that is
            missing or given twice.
    """
    parts = [read(folder) for folder in shards]
    study = _study_of(parts)
    owner = {
        unit: index
        for index, part in reversed(list(enumerate(parts)))
        for unit in part.runs["unit"]
    }
    tables = {
        table: pd.concat(
            [_owned(getattr(part, table), index, owner) for index, part in enumerate(parts)],
            ignore_index=True,
        )
        for table in STUDY
    }
    known = [environment for part in parts for environment in part.environment.values()]
    with StudyFolder.create(out, study, environment=known[0], mode=mode) as folder:
        for environment in known:
            folder.add_environment(environment)
        for part in parts:
            _copy_images(part, folder.path)
        tables["runs"] = inactive_failed(tables["runs"])
        for table, table_frame in tables.items():
            folder.rewrite(table, table_frame)
        _rewrite_known(folder, study, parts)
        return read(folder.path)


def _rewrite_known(folder: StudyFolder, study: Mapping[str, Any], parts: list[Results]) -> None:
    """Known answers: from all images, and those that took calls as the shards made them."""
    made = [part.known for part in parts if len(part.known)]
    if not made:
        return
    tables = folder.read("runs", "images")
    answers = known_answers(
        tables["images"],
        tables["runs"],
        folder.path,
        metrics=study["metrics"],
        seeds=study["seeds"],
        made={},
    )
    of_shards = pd.concat(made)
    further = of_shards[~of_shards["answer"].isin(answers["answer"])]
    folder.rewrite("known", pd.concat([answers, further], ignore_index=True))


def _study_of(parts: list[Results]) -> dict[str, Any]:
    """What all shards ran; each must be there once."""
    if not parts:
        raise ValueError("no shards were given")
    for part in parts:
        if "shard" not in part.study:
            raise ValueError(f"{part.folder} holds no shard of a study")
    study = _one_study(parts)
    _require_every_shard([parse_shard(part.study["shard"]) for part in parts])
    return study


def _one_study(parts: list[Results]) -> dict[str, Any]:
    """What every shard says of the study.

    Raises:
        ValueError: they do not say the same.
    """
    first, *others = ({**part.study, "shard": None} for part in parts)
    for part, study in zip(parts[1:], others, strict=True):
        fields = differing(first, study)
        if fields:
            raise ValueError(
                f"{part.folder} and {parts[0].folder} hold different studies: they differ in "
                f"{', '.join(fields)}"
            )
    del first["shard"]
    return first


def _require_every_shard(shards: list[Shard]) -> None:
    """Refuse shards of different divisions, and one that is missing or given twice."""
    total = shards[0].total
    if any(shard.total != total for shard in shards):
        raise ValueError(
            f"the study was divided in several ways: {', '.join(map(str, shards))}; expected one"
        )
    for number in range(1, total + 1):
        times = sum(shard.number == number for shard in shards)
        if times == 0:
            raise ValueError(f"shard {number}/{total} is missing")
        if times > 1:
            raise ValueError(f"shard {number}/{total} is given twice")


def _owned(table_frame: pd.DataFrame, index: int, owner: dict[str, int]) -> pd.DataFrame:
    return table_frame[table_frame["unit"].map(owner) == index]


def _copy_images(part: Results, folder: Path) -> None:
    (folder / "images").mkdir(exist_ok=True)
    for path in part.images["path"].dropna():
        shutil.copyfile(inside(part.folder, path), inside(folder, path))
