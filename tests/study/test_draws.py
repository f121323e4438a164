"""Variants that stand for several draws: which call runs which, and what is kept of them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import sdbench
from sdbench.analysis.tables import step_profile
from sdbench.records.files import read_image
from sdbench.records.store import read
from sdbench.report.figures.images import image_grid
from sdbench.study import local, runner
from sdbench.study.estimate import estimate
from sdbench.study.shards import gather
from sdbench.study.study import Study
from sdbench.study.units import units
from sdbench.variants.schedule import GuidanceSchedule
from tests import tiny
from tests.study.tables import assert_same

DRAWS = "random:50%@1..3"
STUDY = Study(
    model="tiny",
    variants=["cfg", DRAWS, "random:50%@3"],
    prompts=tiny.PROMPTS,
    seeds=[0],
    num_steps=4,
    guidance_scale=5.0,
    repeats=2,
    metrics=["ssim"],
)


@pytest.fixture(scope="module")
def pipe():
    return tiny.stable_diffusion()


@pytest.fixture(scope="module")
def results(pipe, tmp_path_factory):
    return runner.run(STUDY, tmp_path_factory.mktemp("draws"), pipe=pipe)


def calls(study):
    """(phase, repeat, draw, keeps its images) of the calls of several draws, without warm-ups."""
    return [
        (unit.phase, unit.repeat, unit.draw, unit.keeps_images)
        for unit in units(study)
        if unit.variant.draws and unit.phase != "warmup"
    ]


def changed(**fields):
    return dataclasses.replace(STUDY, **fields)


def test_repeats_take_the_draws_in_turn_and_the_others_follow_untimed():
    assert calls(STUDY) == [
        ("measured", 0, 1, True),
        ("measured", 1, 2, True),
        ("untimed", 2, 3, True),
    ]
    assert len({unit.id for unit in units(STUDY)}) == len(units(STUDY))


def test_more_repeats_than_draws_need_no_further_call():
    assert calls(changed(repeats=5)) == [
        ("measured", 0, 1, True),
        ("measured", 1, 2, True),
        ("measured", 2, 3, True),
        ("measured", 3, 1, False),
        ("measured", 4, 2, False),
    ]


@pytest.mark.parametrize(
    "fields",
    [{"output": "latent", "height": 16, "width": 16}, {"random_weights": True}],
    ids=["latents", "random weights"],
)
def test_where_no_image_is_judged_the_draws_need_no_call_of_their_own(fields):
    assert len(calls(changed(metrics=None, **fields))) == STUDY.repeats


def test_the_other_variants_are_called_as_ever():
    without = units(changed(variants=["cfg", "random:50%@3"]))
    assert {unit.id for unit in without} < {unit.id for unit in units(STUDY)}
    assert all(unit.draw is None for unit in without)


def test_the_images_of_every_draw_are_those_that_it_makes_alone(results):
    """And each of another mask."""
    images = results.images
    several = images[images["variant"] == DRAWS]
    assert several.groupby("draw").size().to_dict() == {1: 2, 2: 2, 3: 2}
    alone = images[images["variant"] == "random:50%@3"].set_index("prompt_id")
    third = several[several["draw"] == 3].set_index("prompt_id")
    for column in ("sha256", "ssim"):
        pd.testing.assert_series_equal(third[column], alone[column])
    assert alone["draw"].isna().all()
    assert several.drop_duplicates(["prompt_id", "sha256"]).shape[0] == 3 * 2


def test_the_steps_say_which_mask_ran(results):
    steps = results.steps.merge(
        results.images[["unit", "draw"]].drop_duplicates(), on="unit"
    ).query("variant == @DRAWS")
    for draw, ran in steps.groupby("draw"):
        expected = GuidanceSchedule.random(4, 2, seed=draw).mask
        assert tuple(ran.sort_values("step")["guided"]) == expected


def test_quality_is_of_all_draws_and_time_of_the_repeats(results):
    summary = sdbench.summarise(results).set_index("variant")
    of_draws = results.images.query("variant == @DRAWS")["ssim"]
    assert summary["ssim"][DRAWS] == pytest.approx(of_draws.mean())
    assert summary["pairs"][DRAWS] == summary["pairs"]["cfg"] == 2
    assert summary["repeats"][DRAWS] == 2
    assert summary["nfe"][DRAWS] == summary["nfe"]["random:50%@3"] == 6
    timed = results.runs.query("variant == @DRAWS and phase == 'measured'")["latency_s"]
    assert summary["latency_s"][DRAWS] == timed.median()


def test_a_folder_says_what_its_tables_say(results):
    whole = sdbench.summarise(results)
    pd.testing.assert_frame_equal(sdbench.summarise(results.folder), whole)


def test_a_step_takes_what_it_takes_in_the_mean_over_draws(results):
    profile = step_profile(results).set_index(["variant", "step"])
    masks = [GuidanceSchedule.random(4, 2, seed=draw).mask for draw in (1, 2, 3)]
    shares = profile["guided"][DRAWS].tolist()
    assert shares == pytest.approx([sum(guided) / 3 for guided in zip(*masks, strict=True)])
    timed = results.runs.query("variant == @DRAWS and phase == 'measured'")["unit"]
    steps = results.steps[results.steps["unit"].isin(timed)]
    expected = steps.groupby("step")["latency_s"].mean()  # of two calls
    assert profile["latency_s"][DRAWS].tolist() == pytest.approx(expected.tolist())


def test_a_grid_shows_the_first_draw(results):
    shuffled = results.images.iloc[::-1]
    grid = image_grid(dataclasses.replace(results, images=shuffled), pairs=[("000", 0)])
    first = shuffled.query("variant == @DRAWS and draw == 1 and prompt_id == '000'")["path"].item()
    drawn = [axes.get_images()[0].get_array() for axes in grid.axes]
    pixels = np.asarray(read_image(results.folder / first)) / np.float32(255)
    assert [np.array_equal(image, pixels) for image in drawn][1]


def test_a_study_interrupted_among_its_further_draws_is_resumed(
    pipe, results, tmp_path, monkeypatch
):
    observe = local.observe

    def interrupted(pipe, unit, work, **how):
        if unit.phase == "untimed":
            raise KeyboardInterrupt
        return observe(pipe, unit, work, **how)

    monkeypatch.setattr(local, "observe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(STUDY, tmp_path, pipe=pipe)
    assert set(read(tmp_path).images["draw"].dropna()) == {1, 2}

    ran = []
    monkeypatch.setattr(
        local,
        "observe",
        lambda pipe, unit, work, **how: ran.append(unit) or observe(pipe, unit, work, **how),
    )
    found = runner.run(STUDY, tmp_path, pipe=pipe, mode="resume")
    assert [unit.draw for unit in ran if unit.variant.draws] == [3]
    assert_same(found, results)


@pytest.mark.slow
def test_shards_hold_the_draws_of_their_batches(pipe, tmp_path):
    study = changed(batch=1, repeats=1)
    for number in ("1", "2"):
        runner.run(study, tmp_path / number, pipe=pipe, shard=f"{number}/2")
    found = gather(tmp_path / "gathered", [tmp_path / "1", tmp_path / "2"])
    assert_same(found, runner.run(study, tmp_path / "whole", pipe=pipe))


def test_a_draw_that_fails_is_a_failed_call(pipe, tmp_path, monkeypatch):
    observe = local.observe

    def broken(pipe, unit, work, **how):
        if unit.draw == 3:
            raise local.NotFinite("latents")
        return observe(pipe, unit, work, **how)

    monkeypatch.setattr(local, "observe", broken)
    found = runner.run(changed(variants=["cfg", DRAWS]), tmp_path, pipe=pipe)
    failed = found.runs[found.runs["status"] == "failed"]
    assert failed["phase"].tolist() == ["untimed"]
    summary = sdbench.summarise(found).set_index("variant")
    assert (summary["failed"][DRAWS], summary["pairs"][DRAWS]) == (1, 2)


def test_an_estimate_counts_the_draws(pipe):
    assert estimate(STUDY, pipe=pipe).calls == len(units(STUDY)) == 3 * (1 + 2) + 1


@pytest.mark.parametrize(
    ("variant", "execution"),
    [("random:2@0..1+deepcache:2", None), ("random:2@0..1", "sequential")],
)
def test_draws_run_however_an_evaluation_does(pipe, tmp_path, variant, execution):
    study = changed(variants=["cfg", variant], repeats=1, guidance_execution=execution)
    found = runner.run(study, tmp_path, pipe=pipe)
    assert set(found.runs["status"]) == {"ok"}
    assert found.images.query("variant == @variant")["sha256"].nunique() == 2 * 2


def test_a_call_whose_number_stood_for_another_mask_is_not_resumed():
    (single,) = (variant for variant in STUDY.variants if variant.name == "random:50%@3")
    as_before = dataclasses.replace(single, content="")
    now, before = (
        {unit.id for unit in units(changed(variants=["cfg", variant])) if unit.variant == variant}
        for variant in (single, as_before)
    )
    assert now
    assert not now & before
