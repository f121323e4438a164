import dataclasses
import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sdbench.analysis.known import likes
from sdbench.instruments import quality
from sdbench.instruments.metric import Metric
from sdbench.records.files import read_table, write_table
from sdbench.records.names import ANSWERS
from sdbench.records.schema import frame, validate
from sdbench.records.store import read
from sdbench.study import runner
from sdbench.study.known import PROMPTS, known_answers, known_units, placed
from sdbench.study.local import Outcome
from sdbench.study.shards import gather
from sdbench.study.study import Study
from sdbench.study.units import Shard
from sdbench.variants.grammar import parse
from tests import tiny

COUNT = 8
STUDY = Study(
    model="tiny",
    variants=["cfg", "last:50%"],
    prompts=["a large red circle on a white background", "a small blue ring on a black background"],
    seeds=[0],
    num_steps=2,
    guidance_scale=5.0,
    batch=1,
    repeats=1,
    metrics=["ssim"],
)


@pytest.fixture(scope="module")
def pipe():
    return tiny.stable_diffusion()


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    """Metrics of somebody else: two that like dark images, and one that sees them as they are."""
    monkeypatch.setattr(quality, "METRICS", dict(quality.METRICS))

    def darkness(images, _):
        return 1 - images.mean((1, 2, 3))

    def code(prompt):
        return hashlib.sha256(prompt.encode()).digest()[0] / 255

    def red_as_told(images, prompts):
        return -(images[:, 0].mean((1, 2)) - torch.tensor([code(text) for text in prompts])).abs()

    for name, compute, needs in (
        ("darkness", darkness, "prompt"),
        ("darkness_to", darkness, "reference"),
        ("red", red_as_told, "prompt"),
    ):
        metric = Metric(name, compute, needs, higher_is_better=True, provenance=dict)
        quality.register_metric(metric)


@pytest.fixture
def images(tmp_path):
    """Images of `cfg` on disk, of two seeds and two repeats; each shows the code of its prompt."""
    (tmp_path / "images").mkdir()
    rows = []
    for index in range(COUNT):
        prompt = f"prompt {index}"
        level = hashlib.sha256(prompt.encode()).digest()[0]
        for seed, repeat in ((0, 0), (1, 0), (0, 1)):
            path = f"images/{index}-{seed}-{repeat}.png"
            generator = np.random.default_rng(index)
            pixels = generator.integers(64, 256, size=(32, 32, 3), dtype=np.uint8)
            pixels[:, :, 0] = level
            Image.fromarray(pixels + np.uint8(0)).save(tmp_path / path)
            rows.append(
                {"unit": f"u{repeat}", "variant": "cfg", "prompt_id": f"{index:03d}"}
                | {"prompt": prompt, "seed": seed, "path": path, "flagged": index == 7}
            )
    return frame("images", rows)


def asked(images, folder, *metrics, seeds=(0, 1), made=()):
    runs = pd.DataFrame({"unit": ["u0", "u1"], "repeat": [0, 1]})
    return known_answers(images, runs, folder, metrics=metrics, seeds=seeds, made=dict(made))


def test_a_metric_that_likes_black_frames_is_found_and_no_other(images, tmp_path):
    table = asked(images, tmp_path, "darkness", "darkness_to", "red", "psnr", "ssim")
    validate(table, "known")
    assert likes(table) == {
        "darkness": "black, noise, other prompt",
        "darkness_to": "black, noise, other prompt",
        "red": "",
        "psnr": "",
        "ssim": "",
    }


def test_every_answer_is_there_of_every_prompt_that_has_an_image(images, tmp_path):
    table = asked(images, tmp_path, "red", "psnr")
    assert table.value_counts(["metric", "answer"]).to_dict() == {
        (metric, answer): 7 for metric in ("red", "psnr") for answer in ANSWERS
    }
    assert "007" not in set(table["prompt_id"])  # a safety checker's placeholder
    again = table[table["answer"] == "again"].set_index(["metric", "prompt_id"])
    assert (again.loc["red", "value"] == again.loc["red", "baseline"]).all()
    assert again.loc["psnr", "value"].isna().all()  # identical images have none
    assert again.loc["psnr", "baseline"].to_numpy() == pytest.approx(48.13, abs=0.01)


def test_the_image_of_another_prompt_is_judged_by_this_one(images, tmp_path):
    table = asked(images, tmp_path, "red").query("answer == 'other prompt'")
    codes = [hashlib.sha256(f"prompt {index}".encode()).digest()[0] / 255 for index in range(7)]
    expected = -np.abs(np.roll(codes, -1) - codes)
    assert table["value"].to_numpy() == pytest.approx(expected, abs=1e-6)


def test_what_was_made_takes_the_place_of_what_is_not_kept(images, tmp_path):
    single = images[images["seed"] == 0]
    grey = {"003": np.full((32, 32, 3), 128, dtype=np.uint8)}
    table = asked(single, tmp_path, "darkness", seeds=[0], made={"other seed": grey})
    made = table[table["answer"] == "other seed"]
    assert made["prompt_id"].tolist() == ["003"]
    assert made["value"].to_numpy() == pytest.approx(1 - 128 / 255, abs=1e-6)


def test_calls_are_made_for_what_the_study_itself_lacks():
    def made(**changes):
        found = known_units(dataclasses.replace(STUDY, **changes))
        return {answer: [unit.pairs for unit in calls] for answer, calls in found.items()}

    pairs = [(pair,) for pair in STUDY.pairs]
    moved = [((name, text, 1),) for ((name, text, _),) in pairs]
    assert made() == {"other seed": moved, "again": pairs}
    assert made(repeats=2) == {"other seed": moved}
    assert made(seeds=[0, 1], repeats=2) == {}
    assert made(metrics=[]) == {}
    many = [f"a {index}" for index in range(PROMPTS + 6)]
    assert len(made(prompts=many)["again"]) == PROMPTS


def test_shards_divide_them():
    parts = [known_units(STUDY, Shard(number, 2)) for number in (1, 2)]
    whole = known_units(STUDY)
    for answer in whole:
        ids = [unit.id for part in parts for unit in part[answer]]
        assert ids == [unit.id for unit in whole[answer]]


def test_a_placeholder_and_a_failed_call_made_nothing():
    ((unit,),) = known_units(dataclasses.replace(STUDY, batch=2, repeats=2)).values()
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    outcome = Outcome({}, {}, images=pixels, flagged=(False, True))
    assert list(placed({"other seed": [(unit, outcome)]})["other seed"]) == ["000"]
    assert placed({"other seed": [(unit, Outcome({}, {}))]}) == {"other seed": {}}


def test_a_study_of_one_seed_and_one_repeat_gets_all_answers(pipe, tmp_path):
    results = runner.run(STUDY, tmp_path / "study", pipe=pipe)
    counts = results.known["answer"].value_counts().to_dict()
    assert counts == dict.fromkeys(
        ["black", "noise", "other prompt", "other seed", "again"], len(STUDY.prompts)
    )
    again = results.known[results.known["answer"] == "again"]
    assert again["value"].to_numpy() == pytest.approx(1)
    other = results.known[results.known["answer"] == "other seed"]
    assert (other["value"] < 1).all()

    # They are no calls of the study, and a resumed study keeps them.
    assert len(results.runs) == 2 * (1 + 2)
    before = (tmp_path / "study" / "known.parquet").stat().st_mtime_ns
    runner.run(STUDY, tmp_path / "study", pipe=pipe, mode="resume")
    assert (tmp_path / "study" / "known.parquet").stat().st_mtime_ns == before
    (tmp_path / "study" / "known.parquet").unlink()
    assert read(tmp_path / "study").known.empty
    again = runner.run(STUDY, tmp_path / "study", pipe=pipe, mode="resume")
    pd.testing.assert_frame_equal(again.known, results.known)


def test_a_failed_variant_that_is_tried_again_makes_no_answers_anew(pipe, tmp_path):
    study = dataclasses.replace(STUDY, variants=["cfg", "random:0@1"])  # which does nothing
    found = runner.run(study, tmp_path / "study", pipe=pipe)
    assert "failed" in set(found.runs["status"])
    before = (tmp_path / "study" / "known.parquet").stat().st_mtime_ns
    runner.run(study, tmp_path / "study", pipe=pipe, mode="resume")
    assert (tmp_path / "study" / "known.parquet").stat().st_mtime_ns == before


def test_shards_bring_their_answers_together(pipe, tmp_path):
    for number in ("1", "2"):
        runner.run(STUDY, tmp_path / number, pipe=pipe, shard=f"{number}/2")
    gathered = gather(tmp_path / "gathered", [tmp_path / "1", tmp_path / "2"])
    whole = runner.run(STUDY, tmp_path / "whole", pipe=pipe)
    key = ["metric", "answer", "prompt_id"]
    # A shard of one prompt has no other prompt's image, and all of them have.
    assert "other prompt" in set(gathered.known["answer"])
    pd.testing.assert_frame_equal(
        gathered.known.sort_values(key, ignore_index=True),
        whole.known.sort_values(key, ignore_index=True),
    )


def test_answers_are_forgotten_before_the_baseline_runs_again(pipe, tmp_path, monkeypatch):
    runner.run(STUDY, tmp_path / "study", pipe=pipe)
    runs = read_table(tmp_path / "study", "runs")
    is_baseline = (runs["variant"] == "cfg") & (runs["phase"] == "measured")
    lost = runs.loc[is_baseline, "unit"].iloc[0]
    for table in ("runs", "steps", "images"):
        kept = read_table(tmp_path / "study", table)
        write_table(tmp_path / "study", table, kept[kept["unit"] != lost])

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_add_known_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(STUDY, tmp_path / "study", pipe=pipe, mode="resume")
    assert read(tmp_path / "study").known.empty

    monkeypatch.undo()
    found = runner.run(STUDY, tmp_path / "study", pipe=pipe, mode="resume")
    assert not found.known.empty


def test_a_study_that_judges_nothing_has_none(pipe, tmp_path):
    study = dataclasses.replace(STUDY, metrics=[], variants=[parse("cfg")])
    runner.run(study, tmp_path / "study", pipe=pipe)
    assert not (tmp_path / "study" / "known.parquet").exists()
