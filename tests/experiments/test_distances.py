from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdbench.analysis.ranking import ranking
from sdbench.experiments.distances import _one_per_pair, distances
from sdbench.instruments.distribution import image_features, kernel_distance
from sdbench.models.mini_sd import scenes
from sdbench.records.schema import empty, frame, validate
from sdbench.records.store import Results
from sdbench.study.runner import run
from sdbench.study.study import Study
from tests.analysis.conftest import filled


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    told = scenes.captions(scenes.sample(40, np.random.default_rng(3), split="test"))
    study = Study(
        model="mini-sd",
        variants=["cfg", "unguided"],
        prompts=list(dict.fromkeys(told))[:16],
        seeds=[0],
        num_steps=6,
        guidance_scale=5.0,
        batch=16,
        repeats=1,
        metrics=["alignment"],
    )
    return run(study, tmp_path_factory.mktemp("study"))


@pytest.mark.slow
def test_no_guidance_ranks_below_guidance_in_alignment(results):
    """Whatever a distance between distributions says of it."""
    table = ranking(results, "alignment", higher_is_better=True)
    assert table["variant"].tolist() == ["cfg", "unguided"]
    assert table[["best_rank", "worst_rank"]].to_numpy().tolist() == [[1, 1], [2, 2]]


def test_every_variant_has_both_distances_with_intervals(results):
    table = distances(results, features="reader", fewest=16)
    validate(table, "distances")
    assert table.groupby("distance")["variant"].apply(list).to_dict() == {
        "frechet": ["cfg", "unguided"],
        "kernel": ["cfg", "unguided"],
    }
    assert ((table["value_lo"] < table["value"]) & (table["value"] < table["value_hi"])).all()
    baseline = table[table["variant"] == "cfg"]
    assert (baseline[["difference", "difference_lo", "difference_hi"]] == 0).all(axis=None)
    assert (results.folder / "distances.parquet").exists()


def test_drawn_scenes_lie_nearer_to_drawn_scenes_than_what_the_model_makes(results, tmp_path):
    rng = np.random.default_rng(1)
    drawn = scenes.draw(scenes.sample(2 * 64, rng, split="test"), rng)
    for index, image in enumerate(drawn[:64]):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    table = distances(results, features="reader", reference=tmp_path, fewest=16)
    assert (table["reference_images"] == 64).all()
    first, second = (
        image_features(torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255, "reader")
        for part in (drawn[:64], drawn[64:])
    )
    kernel = table[table["distance"] == "kernel"].set_index("variant")["value"]
    assert kernel_distance(second, first) < kernel["cfg"]


def test_a_variant_that_lacks_images_of_the_baseline_is_refused(results):
    images = results.images[
        (results.images["variant"] == "cfg") | (results.images["prompt_id"] != "003")
    ]
    with pytest.raises(ValueError, match="'unguided' has not the same prompts and seeds as cfg"):
        distances(replace(results, images=images), features="reader", fewest=15)


def test_too_few_images_are_refused(results):
    with pytest.raises(ValueError, match="takes 512 images; cfg has 16"):
        distances(results, features="reader")


def test_references_are_checked(results, tmp_path):
    with pytest.raises(ValueError, match="a folder with reference images is needed"):
        distances(results, features="inception", fewest=16)
    with pytest.raises(ValueError, match="holds no images"):
        distances(results, features="reader", reference=tmp_path, fewest=16)
    for side in (64, 32):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    with pytest.raises(ValueError, match="are not of one size"):
        distances(results, features="reader", reference=tmp_path, fewest=16)


def test_of_several_draws_each_pair_has_one_in_turn():
    rows = [
        {"unit": f"{variant}/{repeat}", "variant": variant, "prompt_id": f"{pair:03d}", "seed": 0}
        | {"draw": None if variant == "cfg" else 4 + repeat, "prompt": "a"}
        for variant in ("random:1@4..6", "cfg")
        for repeat in range(3)
        for pair in range(7)
    ]
    runs = [
        filled("runs", {"unit": unit, "repeat": int(unit[-1]), "status": "ok", "phase": "measured"})
        for unit in dict.fromkeys(row["unit"] for row in rows)
    ]
    results = Results(
        Path("made-up"),
        frame("runs", runs),
        empty("steps"),
        frame("images", rows),
        environment={},
        study={},
    )
    chosen = _one_per_pair(results)
    drawn = chosen[chosen["variant"] != "cfg"]
    assert drawn.sort_values("prompt_id")["draw"].tolist() == [4, 5, 6, 4, 5, 6, 4]
    assert chosen[chosen["variant"] == "cfg"]["unit"].tolist() == ["cfg/0"] * 7
