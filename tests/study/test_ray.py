import dataclasses
import logging
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray

import sdbench
from sdbench.models import registry
from sdbench.study import local as local_engine
from sdbench.study import ray as engine
from sdbench.study import runner
from sdbench.study.fields import digest
from sdbench.study.known import known_units
from sdbench.study.study import Study
from sdbench.study.units import rounds, units
from tests.study import in_workers
from tests.study.tables import assert_same

ROOT = Path(__file__).parents[2]
QUALITY = Study(
    model="mini-sd",
    variants=["cfg", "last:50%", "unguided"],
    prompts=["a large red circle on a white background", "a small blue ring on a black background"],
    seeds=[0],
    num_steps=2,
    guidance_scale=5.0,
    batch=1,
    repeats=1,
    metrics=["ssim"],
)
WHERE = ["environment", "exclusive"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A local Ray with two CPUs; the folder is where its workers look for what to do."""
    folder = tmp_path_factory.mktemp("workers")
    environment = {"PYTHONPATH": str(ROOT), in_workers.FOLDER: str(folder)}
    os.environ.update(engine.SETTINGS | os.environ)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        runtime_env={
            "env_vars": environment,
            "worker_process_setup_hook": "tests.study.in_workers.prepare",
        },
    )
    yield folder
    ray.shutdown()


@pytest.fixture
def harm(folder):
    """`harm("dies-unguided")`: what the workers are to do in this test."""
    yield lambda name: (folder / name).touch()
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "lay_out", lambda pipe: None)
        return runner.run(QUALITY, tmp_path_factory.mktemp("local"))


def calls(folder):
    """How often every unit was begun, over all workers."""
    return Counter(unit for path in folder.glob("calls-*") for unit in path.read_text().split())


@pytest.mark.slow
def test_two_workers_make_the_tables_of_the_local_engine(local, harm, folder, tmp_path):
    found = runner.run(QUALITY, tmp_path / "study", engine="ray")
    assert_same(found, local, without=WHERE)
    assert len(list(folder.glob("calls-*"))) == 2
    assert set(calls(folder).values()) == {1}


def test_workers_take_no_turns(tmp_path):
    study = dataclasses.replace(QUALITY, repeats=2, timing="lockstep")
    with pytest.raises(ValueError, match="hands calls to its workers"):
        runner.run(study, tmp_path / "study", engine="ray")


@pytest.mark.slow
def test_every_draw_comes_back_from_the_workers(harm, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "lay_out", lambda pipe: None)
    study = dataclasses.replace(QUALITY, variants=("cfg", "random:1@0..1"))
    found = runner.run(study, tmp_path / "there", engine="ray")
    assert_same(found, runner.run(study, tmp_path / "here"), without=WHERE)
    drawn = found.images.dropna(subset="draw")
    assert drawn.groupby("draw").size().to_dict() == {0: 2, 1: 2}
    assert all((found.folder / path).is_file() for path in drawn["path"])


@pytest.mark.slow
def test_times_of_calls_side_by_side_do_not_count(local, harm, tmp_path):
    found = runner.run(QUALITY, tmp_path / "study", engine="ray")
    assert (found.runs["exclusive"] == False).all()  # noqa: E712 - `is` says nothing of a column
    assert local.runs["exclusive"].all()
    summary = sdbench.summarise(found).set_index("variant")
    assert summary["latency_s"].isna().all()
    assert np.isnan(summary["saving"]["unguided"])
    # Calls are recorded as they end, so the variants may stand in another order.
    alone = sdbench.summarise(local).set_index("variant")
    assert summary["ssim"].dropna().to_dict() == alone["ssim"].dropna().to_dict()


@pytest.mark.slow
def test_timed_calls_have_the_machine_to_themselves(harm, folder, tmp_path):
    study = dataclasses.replace(QUALITY, repeats=2)
    found = runner.run(study, tmp_path / "study", engine="ray", workers=2)
    planned = units(study, pipeline=digest(found.study["pipeline"]))
    assert set(found.runs["unit"]) == {unit.id for unit in planned}
    assert (found.runs["status"] == "ok").all()
    assert found.runs["exclusive"].all()
    assert len(list(folder.glob("calls-*"))) == 1
    assert found.environment[found.runs["environment"].iloc[0]]["threads"] == 2


def kill_what_hangs(folder):
    while not (hanging := list(folder.glob("hanging-*"))):
        time.sleep(0.05)
    os.kill(int(hanging[0].name.removeprefix("hanging-")), signal.SIGKILL)


@pytest.mark.slow
def test_controls_are_tuned_where_the_calls_run(harm, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "lay_out", lambda pipe: None)
    # Steps in the middle: the nearest scale is neither that of no guidance nor the whole.
    study = dataclasses.replace(QUALITY, variants=("cfg", "window:1+3"), num_steps=6, controls=True)
    found = runner.run(study, tmp_path / "there", engine="ray", workers=1)
    here = runner.run(study, tmp_path / "here")
    assert found.study["variants"] == here.study["variants"]
    assert here.study["variants"][-1].startswith("scale:")
    assert set(found.runs["variant"]) == set(found.study["variants"])


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_loses_and_repeats_nothing(local, harm, folder, tmp_path):
    harm("hangs-unguided")
    killer = threading.Thread(target=kill_what_hangs, args=(folder,), daemon=True)
    killer.start()
    found = runner.run(QUALITY, tmp_path / "study", engine="ray")
    killer.join(timeout=10)
    assert_same(found, local, without=WHERE)
    further = sum(map(len, known_units(QUALITY).values()))
    assert sorted(calls(folder).values()) == [1] * (len(units(QUALITY)) + further - 1) + [2]


@pytest.mark.slow
def test_a_call_that_kills_its_worker_at_every_try_is_a_failed_row(harm, folder, tmp_path):
    harm("dies-unguided")
    study = dataclasses.replace(QUALITY, prompts=QUALITY.prompts[:1])
    runs = runner.run(study, tmp_path / "study", engine="ray").runs
    failed = runs[(runs["variant"] == "unguided") & (runs["phase"] == "measured")]
    assert failed["status"].tolist() == ["failed"]
    assert failed["message"].item().startswith("the worker died in each of 3 tries: ")
    assert Counter(runs["status"]) == {"ok": len(units(study)) - 1, "failed": 1}
    assert [count for count in calls(folder).values() if count > 1] == [3]
    (folder / "dies-unguided").unlink()
    assert (
        runner.run(study, tmp_path / "study", engine="ray", mode="resume").runs["status"] == "ok"
    ).all()


@pytest.mark.slow
def test_a_call_that_raises_is_a_failed_row_at_once(harm, folder, tmp_path):
    harm("raises-unguided")
    found = runner.run(QUALITY, tmp_path / "study", engine="ray")
    failed = found.runs[found.runs["status"] == "failed"]
    assert failed["message"].str.startswith("RuntimeError: out of luck").tolist() == [True, True]
    assert set(calls(folder).values()) == {1}


@pytest.mark.slow
def test_what_cannot_run_is_refused_by_the_first_worker(harm, tmp_path):
    study = dataclasses.replace(QUALITY, variants=["cfg", "mask:101"])
    with pytest.raises(
        ValueError, match=r"^variant 'mask:101': the schedule has 3 steps but the loop runs 2"
    ):
        runner.run(study, tmp_path / "study", engine="ray")
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_study_begun_here_goes_on_with_workers(local, harm, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "lay_out", lambda pipe: None)
    observe, ran = local_engine.observe, []

    def interrupted(pipe, unit, work, **how):
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append(unit.id)
        return observe(pipe, unit, work, **how)

    monkeypatch.setattr(local_engine, "observe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(QUALITY, tmp_path / "study")
    found = runner.run(QUALITY, tmp_path / "study", engine="ray", mode="resume")
    assert_same(found, local, without=WHERE)
    assert not calls(folder).keys() & set(ran)


NODE = {"CPU": 8.0}
GPUS = {"CPU": 8.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "changes", "asked", "expected"),
    [
        ([NODE], {}, None, (2, 4, 0)),
        ([NODE], {}, 3, (3, 2, 0)),
        ([NODE], {}, 99, (8, 1, 0)),
        ([NODE, NODE], {}, None, (4, 4, 0)),
        ([NODE, NODE], {"repeats": 6}, 4, (1, 8, 0)),
        ([GPUS], {}, None, (4, 2, 1)),
        ([GPUS, NODE], {"repeats": 6}, None, (4, 2, 1)),
        ([GPUS], {"device": "cpu"}, None, (2, 4, 0)),
        ([GPUS], {}, 1, (1, 8, 1)),
    ],
)
def test_a_cluster_is_divided_by_gpus_or_cores(monkeypatch, nodes, changes, asked, expected):
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes]
    )
    shares = engine._shares(dataclasses.replace(QUALITY, **changes), asked)
    assert (shares.workers, shares.threads, shares.gpus) == expected


def test_what_is_compared_runs_on_one_device():
    study = dataclasses.replace(QUALITY, repeats=2)
    groups = list(rounds(units(study)))
    assert [len(group) for group in groups] == [3] * 5  # a warm-up, two batches in two repeats
    assert [unit.id for group in groups for unit in group] == [unit.id for unit in units(study)]
