import dataclasses

import pytest

from sdbench.records.files import write_json
from sdbench.records.store import read
from sdbench.study import runner
from sdbench.study.shards import gather
from sdbench.study.study import Study
from sdbench.study.units import Shard, parse_shard, units
from tests import tiny
from tests.study.tables import assert_same

STUDY = Study(
    model="tiny",
    variants=["cfg", "last:0", "last:50%"],
    prompts=["a large red circle on a white background", "a small blue ring on a black background"],
    seeds=[0, 1, 2],
    num_steps=2,
    guidance_scale=5.0,
    batch=4,
    repeats=1,
    metrics=["ssim"],
)


@pytest.fixture(scope="module")
def pipe():
    return tiny.stable_diffusion()


@pytest.fixture(scope="module")
def shards(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in ("1/2", "2/2"):
        runner.run(STUDY, folder / shard[0], pipe=pipe, shard=shard)
    return [folder / "1", folder / "2"]


@pytest.mark.parametrize("text", ["2", "0/3", "4/3", "1/0", "a/b", "1/2/3", "-1/2"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(
        ValueError, match=f"a shard must be i/n with i from 1 to n, such as 2/8, not '{text}'"
    ):
        parse_shard(text)


def test_shards_divide_the_measured_calls_and_share_the_warm_ups():
    study = dataclasses.replace(STUDY, batch=1)
    parts = [units(study, Shard(number, 4)) for number in range(1, 5)]
    whole = [unit.id for unit in units(study) if unit.phase == "measured"]
    assert sorted(unit.id for part in parts for unit in part if unit.phase == "measured") == sorted(
        whole
    )
    assert {tuple(unit.id for unit in part if unit.phase == "warmup") for part in parts} == {
        tuple(unit.id for unit in units(study) if unit.phase == "warmup")
    }


def test_the_variants_of_a_batch_stay_together():
    for number in (1, 2):
        measured = [unit for unit in units(STUDY, Shard(number, 2)) if unit.phase == "measured"]
        assert {unit.pairs for unit in measured if unit.variant.name == "cfg"} == {
            unit.pairs for unit in measured
        }


def test_more_shards_than_batches_are_refused(pipe, tmp_path):
    with pytest.raises(ValueError, match="3 shards are too many: the study has 2 batches of pairs"):
        runner.run(STUDY, tmp_path / "x", pipe=pipe, shard="1/3")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_gathered_shards_are_the_study_in_one_piece(pipe, shards, tmp_path):
    whole = runner.run(STUDY, tmp_path / "whole", pipe=pipe)
    found = gather(tmp_path / "gathered", reversed(shards))
    assert_same(found, whole)
    assert found.study == whole.study
    assert set(found.runs.loc[found.runs["status"] == "failed", "variant"]) == {
        "last:0"
    }  # inactive in all of it
    assert all((found.folder / path).is_file() for path in found.images["path"])


def test_a_shard_scores_its_own_images_and_resumes(pipe, shards):
    found = read(shards[1])
    assert found.images.loc[found.images["reference_variant"].notna(), "ssim"].notna().all()
    with pytest.raises(ValueError, match="it differs in shard"):
        runner.run(STUDY, shards[1], pipe=pipe, shard="1/2", mode="resume")


def edited(known, folder, **changes):
    """A copy of a shard's tables with another study beside them."""
    folder.mkdir()
    for path in known.glob("*.parquet"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "environment.json").write_bytes((known / "environment.json").read_bytes())
    stored = read(known).study | changes
    write_json(
        folder / "study.json",
        {"schema_version": 1} | {key: stored[key] for key in stored if stored[key] != ""},
    )
    return folder


def test_what_is_no_whole_set_of_shards_is_refused(shards, tmp_path):
    first, second = shards
    sets = {
        "shard 2/2 is missing": [first],
        "shard 1/2 is given twice": [first, first, second],
        "hold different studies: they differ in num_steps": [
            first,
            edited(second, tmp_path / "other", num_steps=9),
        ],
        "divided in several ways: 1/2, 2/3": [
            first,
            edited(second, tmp_path / "more", shard="2/3"),
        ],
        "holds no shard of a study": [first, edited(second, tmp_path / "none", shard="")],
        "no shards were given": [],
    }
    for message, given in sets.items():
        with pytest.raises(ValueError, match=message):
            gather(tmp_path / "out", given)
    assert not (tmp_path / "out").exists()
