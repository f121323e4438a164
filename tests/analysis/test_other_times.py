"""Quality of one study and times of another, where both did the same work."""

from dataclasses import replace
from pathlib import Path

import pytest

from sdbench.analysis.other_times import with_times
from sdbench.analysis.tables import summarise
from sdbench.records.store import read

MASKS = {"cfg": [1] * 20, "last:1": [1] * 19 + [0], "steps:10": [1] * 10}
SETTINGS = {"model": "mini-sd", "num_steps": 20, "guidance_scale": 5.0}
STORED = Path(__file__).parents[2] / "results" / "mini-sd"


@pytest.fixture
def studies(study):
    """Of quality in batches of 64, and of time in batches of 8."""

    def build(masks=MASKS, timed=MASKS, **settings):
        images = [
            {"unit": f"{name}/0/0", "variant": name, "prompt_id": "000", "seed": 0}
            for name in masks
        ]
        quality = study(masks, repeats=1, images=images, changed=lambda row: row | {"batch": 64})
        timing = study(timed, changed=lambda row: row | {"batch": 8})
        return replace(quality, study=SETTINGS), replace(timing, study=SETTINGS | settings)

    return build


def joined(quality, timing):
    return with_times(summarise(quality), quality, summarise(timing), timing).set_index("variant")


def test_times_are_the_other_studys_and_work_its_own(studies):
    quality, timing = studies()
    table, own, other = (
        joined(quality, timing),
        *(summarise(results).set_index("variant") for results in (quality, timing)),
    )
    taken = ["batch", "latency_s", "saving", "denoise_saving_lo", "predicted_denoise_saving"]
    assert table[taken].equals(other[taken])
    assert table[["nfe", "steps", "pairs"]].equals(own[["nfe", "steps", "pairs"]])
    assert table["timed_nfe"].tolist() == other["nfe"].tolist()


def test_a_variant_without_a_time_is_named(studies):
    quality, timing = studies(timed={name: MASKS[name] for name in ("cfg", "last:1")})
    with pytest.raises(ValueError, match="the study of times has no variant 'steps:10'"):
        joined(quality, timing)


def test_a_scale_that_the_study_of_time_tuned_otherwise_gets_its_prediction(study):
    def tuned(name):
        def untimed(row):
            return row | {"phase": "untimed"} if row["variant"] == name else row

        masks = {"cfg": [1] * 20, "last:1": [1] * 19 + [0], name: [1] * 20}
        images = [
            {"unit": f"{one}/0/0", "variant": one, "prompt_id": "000", "seed": 0} for one in masks
        ]
        return replace(study(masks, images=images, changed=untimed), study=SETTINGS)

    table = joined(tuned("scale:4.6"), tuned("scale:4.5"))
    assert table.loc["scale:4.6", ["predicted_saving", "timed_nfe"]].tolist() == [0, 40]
    with pytest.raises(ValueError, match=r"the study of times has no variant 'other:4\.6'"):
        joined(tuned("other:4.6"), tuned("scale:4.5"))


def test_one_that_made_no_image_needs_no_time(studies):
    quality, timing = studies(timed={name: MASKS[name] for name in ("cfg", "last:1")})
    without = quality.images[quality.images["variant"] != "steps:10"]
    table = joined(replace(quality, images=without), timing)
    assert table.loc[["steps:10"], ["batch", "saving", "timed_nfe"]].isna().all(axis=None)


def test_another_number_of_steps_is_refused(studies):
    quality, timing = studies(timed=MASKS | {"steps:10": [1] * 9 + [0] * 2})
    with pytest.raises(ValueError, match="'steps:10' has steps 10, but 11 in the study of times"):
        joined(quality, timing)


def test_evaluations_may_differ_by_what_images_decide_and_no_more(studies):
    quality, timing = studies(timed=MASKS | {"last:1": [1] * 17 + [0] * 3})
    assert joined(quality, timing).loc["last:1", ["nfe", "timed_nfe"]].tolist() == [39, 37]
    quality, timing = studies(timed=MASKS | {"last:1": [1] * 16 + [0] * 4})
    with pytest.raises(ValueError, match="'last:1' has nfe 39, but 36 in the study of times"):
        joined(quality, timing)


@pytest.mark.parametrize(
    ("setting", "value"), [("num_steps", 21), ("model", "sd15"), ("dtype", "bfloat16")]
)
def test_times_of_another_setting_are_refused(studies, setting, value):
    quality, timing = studies(**{setting: value})
    with pytest.raises(ValueError, match=f"has {setting} .*, but the study of times has '?{value}"):
        joined(quality, timing)


def test_the_stored_studies_of_methods_go_together():
    quality, timing = (read(STORED / "methods" / name) for name in ("quality", "time"))
    table = joined(quality, timing)
    differ = table.index[(table["nfe"] - table["timed_nfe"]).abs() > 0]
    assert differ.tolist() == ["adaptive:0.997"]
    assert table["batch"].dropna().unique().tolist() == [8]
