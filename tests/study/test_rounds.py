"""The calls of a round: in lockstep, or each beside a call of the baseline."""

import dataclasses
from contextlib import nullcontext

import pandas as pd
import pytest
import torch

from sdbench.models.registry import load
from sdbench.records.store import read
from sdbench.study import local, runner
from sdbench.study.local import Worker
from sdbench.study.study import Study
from sdbench.study.units import units
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Accelerator, Variant
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


@pytest.fixture(scope="module")
def quick():
    return tiny.stable_diffusion()


def changed(**changes):
    return dataclasses.replace(STUDY, **changes)


def by_variant(study, pipe):
    """What the first round of a study gave, by variant."""
    with Worker(study, pipe) as worker:
        calls = [unit for unit in units(study) if unit.phase == "measured" and unit.repeat == 0]
        return {
            unit.variant.name: outcome for unit, outcome in worker.outcomes(calls, lambda *_: None)
        }


UNTIMED = ["step", "timestep", "sigma", "guided", "rows", "guidance_cosine", "guidance_norm"]
EVERY_KIND = ["lora", "last:50%+lora", "deepcache:2", "last:50%+deepcache:2", "tgate:2", "cached:2"]
EVERY_KIND += ["adaptive:0.99", "interval:0.3-5", "rescale:0.5", "steps:3"]


def assert_same_but_for_times(found, expected):
    for name, outcome in expected.items():
        assert found[name].run["status"] == "ok", found[name].run["message"]
        assert found[name].run["sha256"] == outcome.run["sha256"], name
        for counted in ("rows", "nfe", "forwards", "first_timestep", "accelerated"):
            assert found[name].run[counted] == outcome.run[counted]
        own, other = (pd.DataFrame(each.steps)[UNTIMED] for each in (found[name], outcome))
        pd.testing.assert_frame_equal(own, other)


def test_every_kind_of_variant_is_in_lockstep_what_it_is_alone():
    pipe = load("mini-sd")
    before = {name: weight.clone() for name, weight in pipe.unet.named_parameters()}
    study = changed(model="mini-sd", variants=["cfg", *EVERY_KIND])
    alone = by_variant(dataclasses.replace(study, timing="calls"), pipe)
    found = by_variant(study, pipe)
    assert_same_but_for_times(found, alone)
    assert {outcome.run["timing"] for outcome in found.values()} == {"lockstep"}
    assert {outcome.run["timing"] for outcome in alone.values()} == {"calls"}
    for name, weight in pipe.unet.named_parameters():
        assert torch.equal(weight, before[name])


def test_a_student_in_lockstep_says_how_much_its_weights_take():
    pipe = load("mini-sd")
    study = changed(model="mini-sd", variants=["cfg", "lora", "last:50%"])
    found = by_variant(study, pipe)
    weights = sum(weight.nbytes for weight in pipe.unet.parameters())
    assert 0 < found["lora"].run["copied_bytes"] <= weights
    assert "copied_bytes" not in found["last:50%"].run


def test_all_calls_of_a_round_name_its_baseline(quick, tmp_path):
    runs = runner.run(STUDY, tmp_path / "study", pipe=quick).runs
    measured = runs[runs["phase"] == "measured"]
    assert set(measured["timing"]) == {"lockstep"}
    baselines = measured[measured["variant"] == "cfg"].set_index("repeat")["unit"]
    assert (measured["beside"] == measured["repeat"].map(baselines)).all()
    # What goes on around one goes on around all.
    assert (
        measured.groupby("repeat")["rss_peak_bytes"].agg(lambda peaks: len(set(peaks))) == 1
    ).all()
    assert runs.loc[runs["phase"] == "warmup", "timing"].isna().all()


def test_calls_one_after_another_name_the_baseline_of_their_repeat(quick):
    found = by_variant(changed(timing="calls"), quick)
    first = units(changed(timing="calls"))[len(STUDY.variants)]
    assert {outcome.run["beside"] for outcome in found.values()} == {first.id}


def test_a_call_that_fails_is_its_own_row(quick, monkeypatch):
    observe = local.observe

    def failing(pipe, unit, work, *, give_way=None):
        def giving(progress):
            if unit.variant.name == "last:50%" and progress > 0.4:
                raise RuntimeError("out of luck")
            give_way(progress)

        return observe(pipe, unit, work, give_way=giving if give_way else None)

    monkeypatch.setattr(local, "observe", failing)
    found = by_variant(STUDY, quick)
    assert found["last:50%"].run["status"] == "failed"
    assert found["last:50%"].run["message"].startswith("RuntimeError: out of luck")
    monkeypatch.undo()
    expected = by_variant(changed(timing="calls"), quick)
    del found["last:50%"], expected["last:50%"]
    assert_same_but_for_times(found, expected)


def test_a_round_that_goes_on_has_a_baseline_again(quick, tmp_path, monkeypatch):
    """Its first calls are finished; the others are timed beside a companion."""
    record, recorded = runner.record_call, []

    def interrupted(folder, unit, outcome):
        if len(recorded) == 6:
            raise KeyboardInterrupt
        recorded.append(unit)
        record(folder, unit, outcome)

    monkeypatch.setattr(runner, "record_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(STUDY, tmp_path / "study", pipe=quick)
    assert len(read(tmp_path / "study").runs) == 6
    monkeypatch.undo()

    runs = runner.run(STUDY, tmp_path / "study", pipe=quick, mode="resume").runs
    (companion,) = runs[runs["phase"] == "companion"].itertuples()
    assert companion.variant == "cfg"
    late = runs[(runs["beside"] == companion.unit) & (runs["phase"] == "measured")]
    assert late["variant"].tolist() == ["steps:2", "unguided"]
    assert set(late["repeat"]) == {0}
    assert len(runs[runs["phase"] == "measured"]) == 2 * len(STUDY.variants)


def by_itself():
    """An accelerator that keeps its state elsewhere."""
    method = Accelerator("elsewhere", lambda pipe: nullcontext(), takes_turns=False)
    return Variant("mine", lambda steps: GuidanceSchedule.last(steps, 1), accelerator=method)


def test_what_takes_no_turns_is_timed_beside_a_call_of_the_baseline(quick, tmp_path):
    study = changed(variants=["cfg", "last:50%", by_itself()])
    runs = runner.run(study, tmp_path / "study", pipe=quick).runs
    mine = runs[(runs["variant"] == "mine") & (runs["phase"] == "measured")]
    assert mine["timing"].tolist() == ["calls", "calls"]
    assert mine["message"].str.startswith("timed by itself: elsewhere keeps its state").all()
    companions = runs[runs["phase"] == "companion"]
    assert companions["variant"].tolist() == ["cfg", "cfg"]
    assert set(companions["timing"]) == {"calls"}
    assert sorted(mine["beside"]) == sorted(companions["unit"])
    others = runs[(runs["phase"] == "measured") & (runs["variant"] != "mine")]
    assert set(others["timing"]) == {"lockstep"}


def test_which_of_the_two_comes_first_alternates(quick, tmp_path):
    study = changed(variants=["cfg", by_itself()], repeats=4)
    runs = runner.run(study, tmp_path / "study", pipe=quick).runs
    pairs = runs[(runs["timing"] == "calls")]["phase"].tolist()
    assert pairs == ["companion", "measured", "measured", "companion"] * 2


def test_students_without_room_for_copies_are_timed_by_themselves(monkeypatch):
    monkeypatch.setattr(local, "ROOM", 0.0)
    study = changed(model="mini-sd", variants=["cfg", "lora"])
    found = by_variant(study, load("mini-sd"))
    assert found["lora"].run["timing"] == "calls"
    assert "too little memory for copies of the weights" in found["lora"].run["message"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"execution": "compile"}, "execution is 'compile'"),
        ({}, "CPU offload moves the weights"),
    ],
)
def test_lockstep_is_refused_where_it_cannot_be(changes, reason):
    pipe = tiny.stable_diffusion()
    if not changes:
        pipe.enable_model_cpu_offload(device="cpu")
    with pytest.raises(ValueError, match=f"^timing 'lockstep' is not possible: {reason}"):
        Worker(changed(timing="lockstep", **changes), pipe)


def test_what_cannot_take_turns_runs_by_calls_where_nobody_asked():
    pipe = tiny.stable_diffusion()
    pipe.enable_model_cpu_offload(device="cpu")
    found = by_variant(STUDY, pipe)
    assert {outcome.run["timing"] for outcome in found.values()} == {"calls"}


def test_one_repeat_compares_no_times_and_takes_no_turns(quick):
    found = by_variant(changed(repeats=1), quick)
    assert {outcome.run["timing"] for outcome in found.values()} == {"calls"}


def test_an_unknown_timing_is_refused():
    with pytest.raises(ValueError, match="unknown timing 'races'; there are: lockstep, calls"):
        changed(timing="races")
