from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from sdbench.analysis.ranking import ranking
from sdbench.experiments.distances import _one_per_pair, distances
from sdbench.models.mini_sd import scenes
from sdbench.records.schema import empty, frame, validate
from sdbench.records.store import Results
from sdbench.report.tables import distances_text
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


@pytest.fixture(scope="module")
def against_scenes(results):
    return distances(results, features="reader", fewest=16)


def test_every_variant_has_both_distances_with_floors(results, against_scenes):
    table = against_scenes
    validate(table, "distances")
    assert table.groupby("distance")["variant"].apply(list).to_dict() == {
        "frechet": ["cfg", "unguided"],
        "kernel": ["cfg", "unguided"],
    }
    assert ((table["floor_lo"] < table["floor"]) & (table["floor"] < table["floor_hi"])).all()
    assert table.loc[table["variant"] == "cfg", "difference"].abs().max() < 1e-9
    assert (results.folder / "distances.parquet").exists()

    # A kernel distance of references is 0 on the average, a Fréchet distance far from it.
    kernel, frechet = (table[table["distance"] == name].iloc[0] for name in ("kernel", "frechet"))
    assert kernel["floor_lo"] < 0 < kernel["floor_hi"]
    assert frechet["floor_lo"] > 100


def test_the_reader_of_scenes_does_not_judge_emoji(results):
    other = replace(results, study={**results.study, "model": "emoji-sd"})
    with pytest.raises(ValueError, match=r"its scenes are of mini-sd, and .* images of emoji-sd"):
        distances(other, features="reader", fewest=16)


def test_few_prompts_give_no_interval_and_a_frechet_distance_never_has_one(results, against_scenes):
    ends = ["value_lo", "value_hi", "difference_lo", "difference_hi"]
    assert against_scenes[ends].isna().all(axis=None)

    # The same images as if each were of a prompt of its own, four times.
    images = pd.concat(
        [
            results.images.assign(prompt_id=results.images["prompt_id"] + str(copy))
            for copy in range(4)
        ]
    )
    table = distances(replace(results, images=images), features="reader", fewest=16)
    is_kernel = table["distance"] == "kernel"
    assert table.loc[is_kernel, ends].notna().all(axis=None)
    assert table.loc[~is_kernel, ends].isna().all(axis=None)  # fewer images than features


def test_drawn_scenes_lie_nearer_to_drawn_scenes_than_unguided_images(results, tmp_path):
    rng = np.random.default_rng(1)
    drawn = scenes.draw(scenes.sample(64, rng, split="test"), rng)
    for index, image in enumerate(drawn):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    table = distances(results, features="reader", reference=tmp_path, fewest=16)
    kernel = table[table["distance"] == "kernel"].set_index("variant")
    # Of 16 guided images mini-sd's are not told from drawn ones.
    assert kernel.loc["unguided", "floor_hi"] < kernel.loc["unguided", "value"]
    assert kernel.loc["cfg", "value"] < kernel.loc["unguided", "value"]

    # Half of 64 are held out, in two sets of 16; the kernel distance takes all the same.
    sizes = table.groupby("distance")["reference_images"].unique().map(list).to_dict()
    assert sizes == {"frechet": [32], "kernel": [64]}


def test_a_folder_of_few_images_gives_no_floor(results, tmp_path):
    rng = np.random.default_rng(1)
    for index, image in enumerate(scenes.draw(scenes.sample(31, rng, split="test"), rng)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    table = distances(results, features="reader", reference=tmp_path, fewest=16)
    assert table[["floor", "floor_lo", "floor_hi"]].isna().all(axis=None)
    assert (table["reference_images"] == 31).all()


def test_the_table_shows_differences_first_and_no_interval_of_a_frechet_distance():
    row = {"features": "reader", "images": 512, "reference_images": 2048}
    row |= {"floor": 95.0, "floor_lo": 90.0, "floor_hi": 99.0, "value": 236.0, "difference": 0.0}
    rows = [
        row | {"variant": "cfg", "distance": "frechet"},
        row
        | {"variant": "lora", "distance": "frechet", "difference": 2.0}
        | {"difference_lo": -1.0, "difference_hi": 5.0},
        row | {"variant": "cfg", "distance": "kernel", "value_lo": 200.0, "value_hi": 270.0},
    ]
    console = Console(width=120, file=StringIO())
    console.print(distances_text(frame("distances", rows)))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines == [
        "distance more than cfg value floor variant",
        "kernel, reader - 236 [200,270] 95 [90,99] cfg",
        "frechet, reader - 236 95 [90,99] cfg",
        "frechet, reader +2 [-1,+5] 236 95 [90,99] lora",
    ]


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
