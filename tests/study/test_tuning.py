from dataclasses import replace

import numpy as np
import pytest

from sdbench.models.registry import load
from sdbench.study import runner, tuning
from sdbench.study.estimate import estimate
from sdbench.study.study import Study
from sdbench.study.tuning import (
    HALVINGS,
    _latents,
    _other_pairs,
    nearest,
    nearest_scales,
    tunable,
    tuning_rows,
)
from sdbench.study.units import units
from sdbench.variants.grammar import parse
from tests import tiny

STUDY = Study(
    model="mini-sd",
    variants=["cfg", "last:50%", "last:25%+scale:7"],
    prompts=["a large red circle on a white background"],
    seeds=[0],
    num_steps=6,
    guidance_scale=5.0,
    repeats=1,
    metrics=["ssim"],
    controls=True,
)

PAIRS = _other_pairs(STUDY)
FEW = PAIRS[:4]


@pytest.fixture(scope="module")
def pipe():
    return load("mini-sd")


def test_the_nearest_place_lies_between_points_or_at_an_end():
    line, places = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0]]), np.array([1.0, 2.0, 5.0])
    assert nearest(line, places, np.array([0.5, -1.0])) == 1.25
    assert nearest(line, places, np.array([3.0, 1.0])) == 3.5
    assert nearest(line, places, np.array([-4.0, 1.0])) == 1.0
    assert nearest(line, places, np.array([2.0, 9.0])) == 5.0


def test_a_point_that_stands_still_is_no_obstacle():
    line = np.array([[0.0], [0.0], [1.0]])
    assert nearest(line, np.array([1.0, 2.0, 3.0]), np.array([0.5])) == 2.5


def test_the_scale_found_is_the_best_of_all(pipe):
    (schedule,) = (variant for variant in tunable(STUDY) if variant.name == "last:50%")
    (found,) = nearest_scales(pipe, STUDY, [schedule], FEW).values()
    target = _latents(pipe, STUDY, schedule, FEW, sequential=False)
    scales = np.arange(1.2, 5.0, 0.4)
    away = [
        (
            (_latents(pipe, STUDY, parse(f"scale:{scale:.1f}"), FEW, sequential=False) - target)
            ** 2
        ).sum()
        for scale in scales
    ]
    assert found == pytest.approx(scales[np.argmin(away)], abs=0.3)
    assert 1.2 < found < 4.8


def test_a_schedule_that_guides_all_that_matters_has_no_weaker_control(pipe):
    found = nearest_scales(pipe, STUDY, [parse("last:0"), parse("unguided")], FEW)
    assert found == {"last:0": None, "unguided": None}


@pytest.mark.slow
def test_a_run_adds_the_scales_that_it_found(pipe, tmp_path):
    results = runner.run(STUDY, tmp_path, pipe=pipe)
    found = nearest_scales(pipe, STUDY, tunable(STUDY), PAIRS)
    names = {f"scale:{scale:g}" for scale in found.values()}
    assert set(found) == {"last:50%", "last:25%+scale:7"}
    assert len(names) == 2
    assert set(results.runs["variant"]) == {*STUDY.variant_names, *names}
    assert (results.runs["status"] == "ok").all()
    again = runner.run(
        Study.from_fields(fields(results.study), source="itself"),
        tmp_path,
        pipe=pipe,
        mode="resume",
    )
    assert len(again.runs) == len(results.runs)


def fields(stored):
    return {name: value for name, value in stored.items() if name in Study.__dataclass_fields__}


def test_a_resumed_study_takes_the_scales_that_it_has(tmp_path, monkeypatch):
    pipe = tiny.stable_diffusion()
    found = iter([{"last:50%": 3.2}])
    monkeypatch.setattr(tuning, "nearest_scales", lambda *args, **how: next(found))
    short = replace(STUDY, model="tiny", variants=["cfg", "last:50%"], num_steps=4)
    first = runner.run(short, tmp_path, pipe=pipe)
    again = runner.run(short, tmp_path, pipe=pipe, mode="resume")
    assert first.study["variants"] == again.study["variants"] == [*short.variant_names, "scale:3.2"]
    # A warm-up and a call of what is timed; one of each of six random masks and of the scale.
    timed = ["cfg", "last:50%", "unguided", "steps:3"]
    assert len(again.runs) == len(first.runs) == 2 * len(timed) + 6 + 1


def test_what_fails_in_the_search_is_said(pipe, tmp_path, monkeypatch):
    def fails(*args, **how):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(tuning, "nearest_scales", fails)
    with pytest.raises(ValueError, match="controls was not found: RuntimeError: no kernel"):
        runner.run(STUDY, tmp_path / "out", pipe=pipe)
    assert not (tmp_path / "out").exists()


def test_prompts_come_before_seeds():
    study = replace(STUDY, prompts=("a", "b", "c"), seeds=tuple(range(20)))
    pairs = _other_pairs(study)
    assert len(pairs) == 16
    assert [(prompt, seed) for _, prompt, seed in pairs[:4]] == [
        ("a", 20),
        ("b", 20),
        ("c", 20),
        ("a", 21),
    ]


@pytest.mark.parametrize(
    "changes",
    [{"controls": False}, {"output": "latent", "height": 64, "width": 64, "metrics": None}],
    ids=["none asked for", "no image"],
)
def test_without_images_or_controls_there_is_nothing_to_tune(changes):
    study = replace(STUDY, **changes)
    assert tunable(study) == []
    assert tuning_rows(study) == 0


def test_an_estimate_counts_the_search_and_what_it_adds(pipe):
    expected = estimate(STUDY, pipe=pipe)
    assert expected.calls == expected.most_calls == len(units(STUDY)) + 2  # a call of each scale
    assert tuning_rows(STUDY) == 2 * (1 + 2 * (1 + HALVINGS)) * 6 + 9 + 10


@pytest.mark.parametrize(
    "content",
    ["[]", '{"schema_version": 1, "variants": 5}', '{"schema_version": 1, "variants": [5]}'],
)
def test_a_strange_study_is_not_resumed(pipe, tmp_path, monkeypatch, content):
    monkeypatch.setattr(tuning, "nearest_scales", lambda *args, **how: {"last:50%": None})
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(ValueError, match=r"holds a list|holds another study"):
        runner.run(STUDY, tmp_path, pipe=pipe, mode="resume")


def test_a_scale_is_tuned_in_a_loop_of_the_schedules_length(pipe):
    study = replace(STUDY, variants=("cfg", "window:1+2@5"))
    (schedule,) = tunable(study)
    found = nearest_scales(pipe, study, [schedule], FEW)
    scale = parse(f"scale:{found['window:1+2@5']:g}@5")
    target = _latents(pipe, study, schedule, FEW, sequential=False)

    def distance(variant):
        own = _latents(pipe, study, variant, FEW, sequential=False)
        return float(((own - target) ** 2).mean())

    assert distance(scale) < min(distance(parse("unguided@5")), distance(parse("steps:5")))
    assert tuning.with_tuned_scales(study, pipe).variant_names[-1].endswith("@5")
