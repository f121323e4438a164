"""The wall clock may jump: nothing that is measured, named, resumed or locked goes by it."""

import itertools
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

import sdbench
from sdbench.cli import values
from sdbench.instruments import clock
from sdbench.records.store import StudyFolder, read
from sdbench.study import runner
from sdbench.study.study import Study
from tests import tiny

STUDY = Study(
    model="tiny",
    variants=["cfg", "last:50%"],
    prompts=tiny.PROMPTS,
    seeds=[0],
    num_steps=2,
    guidance_scale=7.5,
    repeats=2,
    metrics=["psnr"],
)


@pytest.fixture
def jumping(monkeypatch):
    """Every look at the wall clock finds it a day later or a week earlier."""
    days = itertools.cycle([1, -7, 30, -20])
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + 86_400 * next(days))
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + 86_400 * 10**9 * next(days))


@pytest.fixture
def ticking(monkeypatch):
    """The clock that measures goes on by a millisecond at every look: times are known exactly."""

    def start():
        ticks = itertools.count(0, 1_000_000)
        monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter_ns=lambda: next(ticks)))

    return start


def measured(folder, **options):
    found = runner.run(STUDY, folder, pipe=tiny.stable_diffusion(), **options)
    times = [name for name in found.runs if name.endswith("_s")]
    return found.runs[["unit", "sha256", *times]], found.steps[
        ["unit", "step", "latency_s", "denoiser_s", "scheduler_s"]
    ]


def test_a_jump_changes_no_measured_time(tmp_path, ticking, request):
    ticking()
    steady = measured(tmp_path / "steady")
    ticking()
    request.getfixturevalue("jumping")
    assert time.time() != pytest.approx(time.time(), abs=3_600)
    for before, found in zip(steady, measured(tmp_path / "jumping"), strict=True):
        pd.testing.assert_frame_equal(found, before, check_exact=True)
    assert (found["latency_s"] > 0).all()


def test_a_jump_breaks_neither_resuming_nor_the_lock(tmp_path, jumping, monkeypatch):
    add, units = StudyFolder.add, []

    def killed(folder, unit, **tables):
        if len(units) == 3:
            raise KeyboardInterrupt
        units.append(unit)
        add(folder, unit, **tables)

    monkeypatch.setattr(StudyFolder, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path)
    before = read(tmp_path).runs
    monkeypatch.setattr(StudyFolder, "add", add)
    with (
        StudyFolder.create(tmp_path, read(tmp_path).study, environment={}, mode="resume"),
        pytest.raises(ValueError, match="is being written by another process"),
    ):
        measured(tmp_path, mode="resume")
    measured(tmp_path, mode="resume")
    after = read(tmp_path).runs
    assert len(after[after["phase"] != "companion"]) == 2 * 3
    same = after[after["unit"].isin(units)].reset_index(drop=True)
    same = same.assign(disturbed=before["disturbed"])  # it is judged once all is there
    pd.testing.assert_frame_equal(same, before, check_exact=True)


def test_a_clock_that_is_set_back_gives_no_folder_twice(tmp_path, monkeypatch):
    class Clock(datetime):
        at = datetime(2026, 3, 29, 2, 30, tzinfo=UTC)

        @classmethod
        def now(cls, tz=None):
            return cls.at

    monkeypatch.setattr(values, "datetime", Clock)
    monkeypatch.chdir(tmp_path)
    for hours in (0, 1, 0, 0):
        Clock.at = datetime(2026, 3, 29, 2, 30, tzinfo=UTC) + timedelta(hours=hours)
        values.new_folder("mine").mkdir(parents=True)
    made = sorted(folder.name for folder in (tmp_path / "sdbench-results").iterdir())
    first = "mine-20260329-023000"
    assert made == [first, f"{first}-2", f"{first}-3", "mine-20260329-033000"]


def test_the_wall_clock_is_asked_by_the_command_line_alone():
    package = Path(sdbench.__file__).parent
    clocks = (
        r"\btime\.(time|time_ns|ctime|localtime|gmtime)\(",
        r"\bdatetime\.(now|today|utcnow)\(",
    )
    asking = re.compile("|".join([*clocks, r"\bst_[amc]time\b", r"\bgetmtime\b"]))
    found = [
        file.relative_to(package)
        for file in package.rglob("*.py")
        if asking.search(file.read_text())
    ]
    assert {file.parts[0] for file in found} == {"cli"}
