from dataclasses import replace

import pandas as pd
import pytest

from sdbench.analysis.perception.settings import PRACTICE, Settings
from sdbench.analysis.perception.trials import blind_test
from sdbench.records.names import TRIAL_MODES

VARIANTS = ("last:20%", "lora")


def made(results, **fields):
    return blind_test(results, Settings(**{"variants": VARIANTS} | fields))


@pytest.mark.parametrize("mode", TRIAL_MODES)
def test_a_test_has_as_many_trials_of_every_kind_as_was_asked(results, mode):
    trials = made(results, mode=mode).trials
    assert trials["kind"].value_counts().to_dict() == {"test": 48, "clear": 8, "identical": 8}
    meetings = trials[trials["kind"] == "test"].groupby(["variant", "against"]).size()
    assert set(meetings) == {16 if mode == "preference" else 24}
    assert list(trials["trial"]) == list(range(64))


def test_the_same_settings_make_the_same_test_and_others_another(results):
    first, again, other = (made(results, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first.trials, again.trials)
    assert first.hash == again.hash != other.hash


def test_the_hash_is_that_of_every_version(results):
    """Answers are judged years later: what a seed draws may not change."""
    trials = made(results, trials=2, seed=5).trials
    assert trials["kind"].str[0].str.cat() == "tcicitiiiiiccccicc"


def test_another_image_makes_another_test(results):
    changed = results.images.copy()
    changed.loc[changed["variant"] == "lora", "sha256"] = "0" * 64
    assert made(replace(results, images=changed)).hash != made(results).hash


def test_the_reference_is_right_and_stands_on_either_side(results):
    trials = made(results).trials
    tests = trials[trials["kind"] != "identical"]
    right = tests["variant_0"].where(tests["right"] == 0, tests["variant_1"])
    assert set(right) == {"cfg"}
    assert 0.3 < tests["right"].mean() < 0.7


def test_in_abx_x_is_either(results):
    trials = made(results, mode="abx").trials
    tests = trials[trials["kind"] == "test"]
    right = tests["variant_0"].where(tests["right"] == 0, tests["variant_1"])
    assert 0.3 < (right == "cfg").mean() < 0.7


def test_of_preference_only_another_caption_is_wrong(results):
    trials = made(results, mode="preference").trials
    assert trials.loc[trials["kind"] != "clear", "right"].isna().all()
    assert trials.loc[trials["kind"] == "clear", "right"].notna().all()


def test_identical_trials_show_one_image_and_clear_ones_two_that_differ(results):
    trials = made(results).trials.set_index("kind")
    same = trials["sha256_0"] == trials["sha256_1"]
    assert same["identical"].all()
    assert not same["clear"].any()


def test_another_seed_is_the_clear_image_where_there_is_one(results):
    again = results.images.assign(
        seed=results.images["seed"] + 1, sha256="1" + results.images["sha256"]
    )
    both = pd.concat([results.images, again], ignore_index=True)
    trials = made(replace(results, images=both)).trials
    assert set(trials.loc[trials["kind"] == "clear", "variant"]) == {"cfg"}


def test_without_unguided_images_and_seeds_another_caption_is_clear(results):
    images = results.images[results.images["variant"] != "unguided"]
    trials = made(replace(results, images=images)).trials
    assert set(trials.loc[trials["kind"] == "clear", "variant"]) == {"cfg"}


def test_practice_has_pairs_that_differ(results):
    practice = made(results).practice
    assert len(practice) == PRACTICE
    assert (practice["sha256_0"] != practice["sha256_1"]).all()


@pytest.mark.parametrize(
    ("variants", "said"),
    [(("cfg",), "'cfg' is the reference"), (("last:2%",), "no images of 'last:2%'; it has cfg")],
)
def test_what_the_study_has_not_is_named(results, variants, said):
    with pytest.raises(ValueError, match=said):
        made(results, variants=variants)


def test_a_study_without_images_or_of_videos_is_refused(results):
    with pytest.raises(ValueError, match="has no images"):
        made(replace(results, images=results.images[:0]))
    with pytest.raises(ValueError, match="holds videos"):
        made(replace(results, images=results.images.assign(frames=8)))


def test_one_image_has_no_catch_trials(results):
    images = results.images[results.images["prompt_id"] == "005"]
    images = images[images["variant"] != "unguided"]
    with pytest.raises(ValueError, match="one caption with one seed"):
        made(replace(results, images=images))
