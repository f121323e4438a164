from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sdbench.analysis.tables import SUMMARY, step_profile, summarise, unguided_share
from sdbench.records.schema import STUDY
from sdbench.records.store import StudyFolder, read

MASKS = {"last:1": [1, 1, 1, 0], "cfg": [1, 1, 1, 1], "unguided": [0, 0, 0, 0]}
RESULTS = Path(__file__).parents[2] / "results"


def by_variant(results):
    return summarise(results).set_index("variant")


def image(variant, prompt, seed=0, repeat=0, **metrics):
    return {
        "unit": f"{variant}/{repeat}/0",
        "variant": variant,
        "prompt_id": prompt,
        "seed": seed,
    } | metrics


def test_baseline_comes_first_then_first_seen_order(study):
    assert list(summarise(study(MASKS))["variant"]) == ["cfg", "last:1", "unguided"]


@pytest.mark.parametrize(
    ("saving", "column"), [("saving", "latency_s"), ("denoise_saving", "denoise_s")]
)
def test_saving_is_the_paired_ratio_to_the_baseline(study, saving, column):
    results = study(MASKS)
    row = by_variant(results).loc["last:1"]
    wide = results.runs.pivot_table(column, index="repeat", columns="variant")
    test = stats.ttest_rel(np.log(wide["last:1"]), np.log(wide["cfg"])).confidence_interval()
    expected = [
        1 - stats.gmean(wide["last:1"] / wide["cfg"]),
        1 - np.exp(test.high),
        1 - np.exp(test.low),
    ]
    np.testing.assert_allclose(
        row[[saving, f"{saving}_lo", f"{saving}_hi"]].astype(float), expected
    )


def test_baseline_saves_nothing_against_itself_without_an_interval(study):
    row = by_variant(study(MASKS)).loc["cfg"]
    assert (row["saving"], row["ideal_saving"], row["predicted_saving"]) == (0, 0, 0)
    assert row[["saving_lo", "saving_hi", "alignment_difference"]].isna().all()


def test_batches_of_a_repeat_are_summed(study):
    results = study(MASKS, batches=3)
    total = results.runs.groupby(["variant", "repeat"])["latency_s"].sum()
    row = by_variant(results).loc["unguided"]
    assert row["saving"] == pytest.approx(1 - stats.gmean(total["unguided"] / total["cfg"]))
    assert row["latency_s"] == results.runs.query("variant == 'unguided'")["latency_s"].median()


def test_repeat_with_a_failed_batch_is_not_paired_but_counted(study):
    def fail(row):
        return row | (
            {"status": "failed", "latency_s": None} if row["unit"] == "last:1/2/1" else {}
        )

    row = by_variant(study(MASKS, batches=2, changed=fail)).loc["last:1"]
    assert (row["repeats"], row["failed"]) == (5, 1)
    assert np.isfinite(row["saving"])
    assert np.isnan(row["saving_lo"])


def test_repeat_that_was_cut_short_is_not_paired(study):
    results = study(MASKS, batches=2)
    results = replace(results, runs=results.runs[results.runs["unit"] != "cfg/5/1"])
    assert list(summarise(results)["repeats"]) == [5, 5, 5]


def test_variant_that_always_failed_keeps_its_row(study):
    def fail(row):
        return row | ({"status": "failed"} if row["variant"] == "last:1" else {})

    row = by_variant(study(MASKS, changed=fail)).loc["last:1"]
    assert (row["failed"], row["repeats"]) == (6, 0)
    assert row[["nfe", "latency_s", "saving", "predicted_saving", "peak_bytes"]].isna().all()


def test_warmups_are_not_averaged(study):
    def slow_first(row):
        return row | (
            {"phase": "warmup", "latency_s": 1e6, "peak_bytes": 9}
            if row["repeat"] == 0
            else {"peak_bytes": 7}
        )

    summary = summarise(study(MASKS, repeats=7, changed=slow_first))
    assert (summary["repeats"] == 6).all()
    assert summary["latency_s"].max() < 10
    assert (summary["peak_bytes"] == 7).all()


def test_ideal_saving_counts_evaluations(study):
    summary = by_variant(study(MASKS))
    assert list(summary["nfe"]) == [8, 7, 4]
    assert list(summary["ideal_saving"]) == [0, 1 / 8, 1 / 2]


def test_the_unguided_share_is_of_the_steps_that_ran(study):
    share = unguided_share(study(MASKS))
    assert share.to_dict() == pytest.approx({"cfg": 0, "last:1": 1 / 4, "unguided": 1})


def test_a_step_in_which_some_images_were_guided_is_unguided_in_part(study):
    def changed(row):
        return row | ({"nfe": 4 + 1.5} if row["variant"] == "adaptive:0.9" else {})

    results = study({"cfg": [1, 1, 1, 1], "adaptive:0.9": [1, 1, 1, 0]}, changed=changed)
    assert unguided_share(results)["adaptive:0.9"] == pytest.approx(2.5 / 4)


def test_beside_an_accelerator_the_others_have_no_full_calls(study):
    def cached(row):
        return row | {"full_forwards": 7 if row["variant"] == "deepcache:3" else None}

    table = summarise(study({"cfg": [1] * 20, "deepcache:3": [1] * 20}, changed=cached))
    assert table["full_forwards"].dtype == "float64"
    assert table["full_forwards"].fillna(-1).tolist() == [-1, 7]


def test_metric_is_the_mean_over_pairs(study):
    images = [
        image("last:1", f"p{n % 8}", seed=n // 8, lpips=n**2 / 1000, extra=1.0 * n)
        for n in range(16)
    ]
    row = by_variant(study(MASKS, images=images)).loc["last:1"]
    assert (row["pairs"], row["extra"]) == (16, 7.5)
    assert row["lpips"] == pytest.approx(np.mean(np.arange(16) ** 2) / 1000)


def test_beside_the_mean_stand_the_median_and_the_share_of_changed_images(study):
    lpips = np.r_[np.full(60, 0.001), np.linspace(0.02, 0.6, 6)]
    images = [image("last:1", f"p{n}", lpips=value) for n, value in enumerate(lpips)]
    row = by_variant(study(MASKS, images=images)).loc["last:1"]
    assert row["lpips_median"] == row["lpips_median_hi"] == 0.001
    assert row["lpips_changed"] == pytest.approx(6 / 66)
    assert row["lpips_lo"] < row["lpips"] < row["lpips_hi"]


def test_a_mean_of_few_prompts_has_no_interval_whatever_was_drawn(study):
    for lpips in (np.zeros(63), np.full(63, 0.1), np.r_[np.zeros(62), 0.6]):
        images = [image("last:1", f"p{n}", lpips=value) for n, value in enumerate(lpips)]
        row = by_variant(study(MASKS, images=images)).loc["last:1"]
        assert row[["lpips_lo", "lpips_hi"]].isna().all()
        assert row[["lpips_median_lo", "lpips_changed_lo", "lpips_changed_hi"]].notna().all()


def test_of_several_draws_every_image_is_changed_or_not(study):
    """The mean over draws of a pair would be beyond the threshold for every pair."""
    images = [
        image("last:1", f"p{n}", repeat=draw, draw=draw, lpips=0.5 * (draw == 0))
        for n in range(8)
        for draw in range(4)
    ]
    row = by_variant(study(MASKS, images=images)).loc["last:1"]
    assert (row["pairs"], row["lpips"], row["lpips_median"]) == (8, 0.125, 0)
    assert row["lpips_changed"] == 0.25


def test_noise_floor_is_the_baseline_against_its_first_repeat(study):
    references = [image("cfg", f"p{n}") for n in range(8)]
    again = [image("cfg", f"p{n}", repeat=1, lpips=n / 100) for n in range(8)]
    row = by_variant(study(MASKS, images=references + again)).loc["cfg"]
    assert (row["pairs"], row["lpips"]) == (8, pytest.approx(0.035))


def test_alignment_is_compared_pair_by_pair(study):
    base, other = np.random.default_rng(0).uniform(size=(2, 80))
    cfg = [image("cfg", f"p{n}", alignment=base[n]) for n in range(80)]
    images = cfg + [image("last:1", f"p{n}", alignment=other[n]) for n in reversed(range(70))]
    row = by_variant(study(MASKS, images=images)).loc["last:1"]
    assert row["alignment_difference"] == pytest.approx((other - base)[:70].mean())
    assert (
        row["alignment_difference_lo"]
        < row["alignment_difference"]
        < row["alignment_difference_hi"]
    )


def test_image_of_a_failed_call_is_left_out(study):
    def fail(row):
        return row | ({"status": "failed"} if row["unit"] == "last:1/0/0" else {})

    images = [image("last:1", "p", lpips=0.5), image("last:1", "p", repeat=1, lpips=0.1)]
    assert by_variant(study(MASKS, changed=fail, images=images))["lpips"]["last:1"] == 0.1


def test_study_without_baseline_is_refused(study):
    with pytest.raises(ValueError, match="no runs of the baseline 'cfg'; there are last:1"):
        summarise(study({"last:1": [1, 0]}))


def test_empty_study_is_refused(study):
    with pytest.raises(ValueError, match="no runs of the baseline 'cfg'"):
        summarise(study({}))


def test_profile_has_the_median_course_of_every_variant(study):
    results = study(MASKS)
    cosine = pd.Series(np.linspace(0, 1, len(results.steps))).where(
        results.steps["guided"].astype(bool)
    )
    results = replace(results, steps=results.steps.assign(guidance_cosine=cosine))
    profile = step_profile(results)
    assert list(profile["variant"].unique()) == ["cfg", "last:1", "unguided"]
    steps = results.steps.query("variant == 'last:1' and step == 2")
    row = profile.query("variant == 'last:1' and step == 2").iloc[0]
    assert (row["latency_s"], bool(row["guided"])) == (steps["latency_s"].median(), True)
    np.testing.assert_allclose(
        row[["guidance_cosine_q25", "guidance_cosine", "guidance_cosine_q75"]].astype(float),
        np.quantile(steps["guidance_cosine"], [0.25, 0.5, 0.75]),
    )
    assert profile.query("variant == 'unguided'")["guidance_cosine"].isna().all()


def test_profile_of_a_study_without_steps_has_no_rows(study):
    results = study(MASKS)
    profile = step_profile(replace(results, steps=results.steps.iloc[:0]))
    assert profile.empty
    assert list(profile) == list(step_profile(results))


STORED = (
    "mini-sd/default",
    "mini-sd/distill-full/quality",
    "mini-sd/selective/time",
    "sd15-cpu/cost/512x512-batch1",
)


def same_from_its_folder(folder):
    whole = read(folder)
    pd.testing.assert_frame_equal(summarise(folder), summarise(whole), check_exact=True)
    steps = {"steps": (*SUMMARY["steps"], "variant", "guidance_cosine")}
    profile = step_profile(read(folder, columns=SUMMARY | steps))
    pd.testing.assert_frame_equal(profile, step_profile(whole), check_exact=True)


@pytest.mark.parametrize("stored", STORED)
def test_a_stored_study_says_the_same_from_its_folder(stored):
    same_from_its_folder(RESULTS / stored)


def test_a_study_with_gaps_says_the_same_from_its_folder(study, tmp_path):
    """Failed, unsupported and warm-up calls, missing pairs, an own metric, one image only."""

    def changed(row):
        states = {"last:1/2/1": "failed", "unguided/0/0": "failed", "unguided/1/0": "unsupported"}
        row |= {
            "status": states.get(row["unit"], "ok"),
            "message": "so it is",
            "peak_bytes": 5,
            "flop": 8,
        }
        return row | ({"phase": "warmup"} if row["repeat"] == 0 else {})

    random = np.random.default_rng(0)
    images = [
        image(
            variant,
            f"p{n}",
            seed=n % 2,
            repeat=1,
            lpips=random.uniform(),
            alignment=random.uniform(),
            extra=1.0 * n,
        )
        for variant, missing in (("cfg", ()), ("last:1", (3, 11)))
        for n in reversed(range(12))
        if n not in missing
    ]
    results = study(
        MASKS, batches=2, changed=changed, images=[*images, image("unguided", "p1", repeat=2)]
    )
    with StudyFolder.create(tmp_path / "x", {}, environment={}) as folder:
        for table in STUDY:
            folder.rewrite(table, getattr(results, table))
    same_from_its_folder(tmp_path / "x")


def test_times_of_calls_beside_others_are_missing_rather_than_wrong(study):
    def shared(row):
        return row | {"exclusive": False}

    results = study(MASKS, changed=shared)
    summary = by_variant(results)
    assert summary[["latency_s", "predicted_saving"]].isna().all(axis=None)
    assert summary.loc["unguided", ["saving", "denoise_saving"]].isna().all()
    assert summary["nfe"].to_dict() == by_variant(study(MASKS))["nfe"].to_dict()
    assert step_profile(results)["latency_s"].isna().all()


def test_a_repeat_with_a_call_beside_others_is_not_paired(study):
    def shared(row):
        return row | {"exclusive": row["unit"] != "last:1/2/1"}

    summary = by_variant(study(MASKS, batches=2, changed=shared))
    assert summary["repeats"].to_dict() == {"cfg": 6, "last:1": 5, "unguided": 6}
    assert np.isfinite(summary.loc["last:1", ["latency_s", "saving"]].astype(float)).all()
