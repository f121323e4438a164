"""The energy of a study's calls, by a counter that grows by a joule with every denoiser row."""

import dataclasses
import io
import time

import pytest
from rich.console import Console

import sdbench
from sdbench.instruments.energy import Gauge, Reading
from sdbench.records.store import read
from sdbench.report.tables import summary_table
from sdbench.study import local, runner
from sdbench.study.study import Study
from tests import tiny

STUDY = Study(
    model="tiny",
    variants=["cfg", "last:50%", "steps:2", "unguided"],
    prompts=tiny.PROMPTS,
    seeds=[0],
    num_steps=4,
    guidance_scale=5.0,
    repeats=2,
    metrics=(),
)


class Rows:
    """A counter of the rows that a network evaluated, a joule each."""

    source = "rapl"
    ranges_j = (None,)
    most_w = 1e12
    update_s = 1e-9
    in_slices = True

    def __init__(self, network):
        self.joules = 0.0
        network.register_forward_pre_hook(self.count)

    def count(self, network, arguments):
        self.joules += arguments[0].shape[0]

    def read(self):
        return Reading(time.perf_counter(), (self.joules,))


@pytest.fixture
def pipe():
    return tiny.stable_diffusion()


@pytest.fixture
def counter(pipe, monkeypatch):
    made = Rows(pipe.unet)
    monkeypatch.setattr(local, "gauge_for", lambda device: Gauge(made, 0.25, made.update_s))
    return made


def printed(results):
    console = Console(width=400, file=io.StringIO())
    console.print(summary_table(sdbench.summarise(results), wide=True))
    return console.file.getvalue()


@pytest.mark.parametrize("timing", ["lockstep", "calls"])
def test_every_call_and_step_has_the_energy_of_its_own_rows(pipe, counter, timing, tmp_path):
    study = dataclasses.replace(STUDY, timing=timing)
    results = runner.run(study, tmp_path / "study", pipe=pipe)
    assert (results.runs["status"] == "ok").all()
    assert results.runs["energy_j"].tolist() == results.runs["rows"].tolist()
    assert results.steps["energy_j"].tolist() == results.steps["rows"].tolist()
    assert set(results.runs["energy_source"]) == {"rapl"}
    assert set(results.runs["idle_w"]) == {0.25}


def test_a_summary_has_joules_per_image_and_the_idle_power_beside_them(pipe, counter, tmp_path):
    results = runner.run(STUDY, tmp_path / "study", pipe=pipe)
    summary = sdbench.summarise(tmp_path / "study")
    assert summary["energy_j"].tolist() == summary["nfe"].tolist()
    assert set(summary["idle_w"]) == {0.25}
    assert "energy J" in printed(results)
    assert "idle W" in printed(results)


def test_a_counter_that_stands_still_leaves_a_call_without_energy_and_says_so(pipe, counter):
    counter.count = lambda *_: None
    pipe.unet._forward_pre_hooks.clear()
    results = runner.run(STUDY, pipe=pipe)
    assert (results.runs["status"] == "ok").all()
    assert results.runs["energy_j"].isna().all()
    assert results.steps["energy_j"].isna().all()
    assert set(results.runs["message"]) == {"no energy: the counter stood still"}


def test_a_counter_that_may_not_be_read_within_a_call_tells_nothing_in_lockstep(pipe, counter):
    counter.in_slices = False
    results = runner.run(dataclasses.replace(STUDY, timing="lockstep"), pipe=pipe)
    warm = results.runs["phase"] == "warmup"
    assert results.runs.loc[warm, "energy_j"].tolist() == results.runs.loc[warm, "rows"].tolist()
    assert results.runs.loc[~warm, ["energy_j", "energy_source"]].isna().all(axis=None)
    assert results.steps["energy_j"].isna().all()


def test_where_calls_share_the_device_no_energy_is_told(pipe, counter):
    with local.Worker(STUDY, pipe, exclusive=False) as worker:
        assert worker._work.gauge is None


def test_without_a_counter_nothing_is_stored_or_printed(pipe, monkeypatch, tmp_path):
    monkeypatch.setattr(local, "gauge_for", lambda device: None)
    results = runner.run(STUDY, tmp_path / "study", pipe=pipe)
    columns = ["energy_j", "idle_w", "energy_source"]
    assert results.runs[columns].isna().all(axis=None)
    assert not {"energy_j", "idle_w"} & set(sdbench.summarise(results))
    assert "energy" not in printed(results)


def test_a_table_from_before_there_was_energy_lacks_it(pipe, counter, tmp_path):
    runner.run(STUDY, tmp_path / "study", pipe=pipe)
    columns = ["energy_j", "idle_w", "energy_source"]
    for table in ("runs", "steps"):
        stored = read(tmp_path / "study")
        older = getattr(stored, table).drop(columns=columns, errors="ignore")
        older.to_parquet(tmp_path / "study" / f"{table}.parquet", index=False)
    results = read(tmp_path / "study")
    assert results.runs[columns].isna().all(axis=None)
    assert results.steps["energy_j"].isna().all()
    assert "energy_j" not in sdbench.summarise(tmp_path / "study")
