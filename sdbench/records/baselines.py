"""Baselines: the tables that later runs are compared with, and what was accepted when and why.

How runs are compared is in `sdbench.analysis.regression`.
"""

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from sdbench.records.files import PREFIX, read_table, write_json, write_table
from sdbench.records.schema import HISTORY, STUDY, empty, frame, validate
from sdbench.records.store import Results, StudyFolder


def accept(
    folder: Path,
    run: Results,
    figures: pd.DataFrame,
    reason: str,
    *,
    at: datetime,
    forced: str = "",
) -> None:
    """Make a run the baseline in a folder, whole or not at all; its images are not kept.

    Args:
        folder: of the baseline; made if it does not exist.
        run: what becomes the baseline.
        figures: its figures, as `compare` gives them in `current`.
        reason: why; stays in the history.
        at: the moment, with its time zone.
        forced: what spoke against the run and was overruled, if anything; stays in the history.

    Raises:
        ValueError: no reason, a run with calls that failed, or a folder that is no baseline.
    """
    if not reason.strip():
        raise ValueError("accepting a baseline needs a reason, not an empty text")
    failed = run.runs.loc[run.runs["status"] == "failed", "variant"].unique()
    if len(failed):
        raise ValueError(f"a run with failed variants ({', '.join(failed)}) cannot be a baseline")

    past = read_history(folder) if folder.exists() else empty("history")
    fresh = folder.with_name(f"{PREFIX}{folder.name}-new")
    old = folder.with_name(f"{PREFIX}{folder.name}-old")

    # What an earlier try left unfinished is in the way.
    shutil.rmtree(fresh, ignore_errors=True)
    _write(fresh, run)
    write_table(
        fresh,
        "history",
        pd.concat([past, _entry(run, figures, reason, at, forced)], ignore_index=True),
    )

    # Two renames: killed between them, the old baseline is still there under its other name.
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_history(folder: Path) -> pd.DataFrame:
    """What was accepted as a baseline, in order: one row per acceptance, variant and figure.

    Raises:
        ValueError: the folder holds no history.
    """
    return validate(read_table(folder, *HISTORY), *HISTORY, source=str(folder / "history.parquet"))


def _write(folder: Path, run: Results) -> None:
    kept = {
        "runs": run.runs,
        "steps": run.steps,
        "images": run.images.assign(path=pd.Series(dtype="string")),
    }
    with StudyFolder.create(folder, run.study, environment={}) as made:
        for table in STUDY:
            made.rewrite(table, kept[table])
    write_json(folder / "environment.json", run.environment)
    for leftover in folder.glob(f"{PREFIX}*"):
        leftover.unlink()


def _entry(
    run: Results, figures: pd.DataFrame, reason: str, at: datetime, forced: str
) -> pd.DataFrame:
    key, env = next(iter(run.environment.items()))
    shared: dict[str, Any] = {
        "accepted": at.isoformat(timespec="seconds"),
        "reason": reason.strip(),
        "forced": forced or None,
    }
    shared |= {"environment": key, "commit": env.get("commit")}
    measured = figures.loc[figures["current"].notna(), ["variant", "figure", "current"]]
    rows = [
        shared | {"variant": variant, "figure": figure, "value": value}
        for variant, figure, value in measured.itertuples(index=False)
    ]
    return frame("history", rows)
