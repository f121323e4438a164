from dataclasses import replace
from datetime import UTC, datetime

import pandas as pd
import pytest

from sdbench.records.baselines import accept, read_history
from sdbench.records.store import StudyFolder, read

FIGURES = pd.DataFrame(
    {"variant": ["cfg", "last:2"], "figure": ["nfe", "nfe"], "current": [8.0, 6.0]}
)


def moment(minute):
    return datetime(2026, 5, 1, 12, minute, tzinfo=UTC)


@pytest.fixture
def run(tmp_path, parts):
    with StudyFolder.create(
        tmp_path / "run", {"model": "x"}, environment={"cpu": "y", "commit": "abc"}
    ) as folder:
        for unit in "ab":
            folder.add(unit, **parts(unit))
    return read(tmp_path / "run")


def test_a_run_becomes_the_baseline_with_its_reason(tmp_path, run):
    accept(tmp_path / "base", run, FIGURES, " first ", at=moment(0))
    stored = read(tmp_path / "base")
    pd.testing.assert_frame_equal(stored.runs, run.runs)
    assert (stored.environment, stored.study) == (run.environment, run.study)
    assert stored.images["path"].isna().all()
    history = read_history(tmp_path / "base")
    assert history[["accepted", "reason", "commit"]].drop_duplicates().to_numpy().tolist() == [
        ["2026-05-01T12:00:00+00:00", "first", "abc"]
    ]
    assert history["value"].tolist() == [8.0, 6.0]
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == [
        "environment.json",
        "history.parquet",
        "images.parquet",
        "runs.parquet",
        "steps.parquet",
        "study.json",
    ]


def test_the_next_one_replaces_it_and_keeps_the_history(tmp_path, run):
    accept(tmp_path / "base", run, FIGURES, "first", at=moment(0))
    slower = replace(run, runs=run.runs.assign(latency_s=9.0))
    accept(
        tmp_path / "base", slower, FIGURES.assign(current=7.0), "slower, but right", at=moment(1)
    )
    assert set(read(tmp_path / "base").runs["latency_s"]) == {9.0}
    assert read_history(tmp_path / "base").groupby("reason", sort=False)[
        "value"
    ].first().to_dict() == {
        "first": 8.0,
        "slower, but right": 7.0,
    }
    assert {path.name for path in tmp_path.iterdir()} == {"run", "base"}


def test_what_was_overruled_stays_in_the_history(tmp_path, run):
    accept(tmp_path / "base", run, FIGURES, "first", at=moment(0))
    accept(tmp_path / "base", run, FIGURES, "noisy", at=moment(1), forced="last:2: spreads")
    told = read_history(tmp_path / "base")[["reason", "forced"]].fillna("").drop_duplicates()
    assert told.to_numpy().tolist() == [["first", ""], ["noisy", "last:2: spreads"]]


def test_without_a_reason_nothing_is_accepted(tmp_path, run):
    with pytest.raises(ValueError, match="needs a reason"):
        accept(tmp_path / "base", run, FIGURES, " ", at=moment(0))
    assert not (tmp_path / "base").exists()


def test_a_folder_that_is_no_baseline_is_left_alone(tmp_path, run):
    with pytest.raises(ValueError, match=r"history\.parquet is missing"):
        accept(tmp_path / "run", run, FIGURES, "first", at=moment(0))
    pd.testing.assert_frame_equal(read(tmp_path / "run").runs, run.runs)


def test_a_run_with_a_failed_call_is_no_baseline(tmp_path, run):
    failed = replace(run, runs=run.runs.assign(status="failed", variant="last:2"))
    with pytest.raises(ValueError, match=r"failed variants \(last:2\) cannot be a baseline"):
        accept(tmp_path / "base", failed, FIGURES, "first", at=moment(0))
    assert not (tmp_path / "base").exists()
