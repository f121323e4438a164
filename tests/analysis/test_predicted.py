"""What steps cost, and the saving that this lets expect: from calls that are not judged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sdbench.analysis.cost import cost_point, step_cost
from sdbench.analysis.predicted import (
    denoise_share,
    guidance_ratio,
    has_rows_of_its_own,
    predictions,
    step_medians,
)
from sdbench.analysis.tables import summarise
from sdbench.records.store import read

MASKS = {"last:1": [1, 1, 1, 0], "cfg": [1, 1, 1, 1], "unguided": [0, 0, 0, 0]}
GUIDED_S, UNGUIDED_S, AROUND_S = 0.4, 0.25, 1.0  # as `study` makes them
R = GUIDED_S / UNGUIDED_S
RESULTS = Path(__file__).parents[2] / "results"


def rowed(results):
    """The steps evaluate two rows per image where they are guided, else one."""
    rows = results.steps["guided"].map({True: 2, False: 1}).astype("Int64")
    return replace(results, steps=results.steps.assign(rows=rows * 8))


def of_eight(row):
    return row | {"batch": 8}


def slowed(results, factor, **where):
    """Steps of one variant take longer; their call too."""
    chosen = (results.steps[list(where)] == list(where.values())).all(axis=1)
    times = results.steps["latency_s"].where(~chosen, factor * results.steps["latency_s"])
    return replace(results, steps=results.steps.assign(latency_s=times))


def times_of(masks):
    """What a call takes in seconds, around the loop included."""
    return {
        name: AROUND_S + sum(GUIDED_S if guided else UNGUIDED_S for guided in mask)
        for name, mask in masks.items()
    }


# R, one definition.


def test_the_ratio_is_the_geometric_mean_over_repeats_with_students_interval(study):
    results = study(MASKS, repeats=8)
    results.steps["latency_s"] *= np.random.default_rng(1).normal(1, 0.02, len(results.steps))
    medians = step_medians(results)
    logs = np.log(medians[True] / medians[False])
    test = stats.ttest_1samp(logs, 0).confidence_interval()
    expected = np.exp([logs.mean(), test.low, test.high])
    np.testing.assert_allclose(guidance_ratio(results), expected)


@pytest.mark.parametrize("stored", ["default", "selective/time", "cost/64x64-batch8"])
def test_every_place_says_the_same_ratio(stored):
    results = read(RESULTS / "mini-sd" / stored)
    ratio = guidance_ratio(results)
    point = cost_point(results)
    assert step_cost(results).ratio == ratio
    assert (point["ratio"], point["ratio_lo"], point["ratio_hi"]) == ratio


def test_it_comes_from_calls_with_both_kinds_of_steps(study):
    results = slowed(study(MASKS), 99.0, variant="unguided")
    assert guidance_ratio(results).estimate == pytest.approx(R)


def test_it_falls_back_on_calls_of_one_kind(study):
    results = study({"cfg": [1, 1], "unguided": [0, 0]})
    medians = results.steps.groupby(["repeat", "variant"])["latency_s"].median()
    expected = stats.gmean(medians.xs("cfg", level=1) / medians.xs("unguided", level=1))
    assert guidance_ratio(results).estimate == pytest.approx(expected)


def test_it_is_missing_without_unguided_steps(study):
    results = study({"cfg": [1, 1], "steps:1": [1]})
    assert np.isnan(guidance_ratio(results)).all()
    assert summarise(results)["predicted_saving"].isna().all()


def test_it_is_missing_where_every_call_shared_its_device(study):
    results = study(MASKS, changed=lambda row: row | {"exclusive": False})
    assert np.isnan(guidance_ratio(results)).all()


def named(row):
    """Work that is not counted, as of quantised layers."""
    return {"flop": None, "accelerated": "deepcache" in row["variant"]}


def counted(row):
    """As stored before accelerated calls were named."""
    return {"flop": None if "deepcache" in row["variant"] else 10, "accelerated": None}


@pytest.mark.parametrize("known", [named, counted])
def test_it_is_not_of_steps_in_which_other_things_differ(study, known):
    """An accelerator's steps, and steps in which some images were guided, are left out."""
    results = study(
        {"cfg": [1, 1], "last:1": [1, 0], "last:1+deepcache:3": [1, 0], "adaptive:0.9": [1, 1, 0]},
        changed=lambda row: row | {"batch": 2} | known(row),
    )
    rows = results.steps["guided"].map({True: 4, False: 2})
    odd = (results.steps["variant"] == "adaptive:0.9") & (results.steps["step"] == 1)
    slow = (results.steps["variant"] == "last:1+deepcache:3") | odd
    results.steps["rows"] = rows.mask(odd, 3)
    results.steps["latency_s"] = results.steps["latency_s"].mask(slow, 50.0)
    assert guidance_ratio(results).estimate == pytest.approx(R, rel=0.05)


# What is expected of a variant.


def test_the_saving_is_that_of_the_published_formula(study):
    found = predictions(study(MASKS | {"last:2": [1, 1, 0, 0]}))["last:1"]
    expected = 1 / 4 * (1 - 1 / R)
    assert found.loop.estimate == pytest.approx(expected, rel=1e-6)
    share = 4 * GUIDED_S / times_of(MASKS)["cfg"]
    assert found.call.estimate == pytest.approx(share * expected, rel=0.01)


def test_what_is_expected_of_fewer_steps_is_their_share_of_the_loop(study):
    results = study(MASKS | {"steps:3": [1, 1, 1]})
    found = predictions(results)["steps:3"]
    assert found.loop.estimate == pytest.approx(1 / 4)
    assert found.call.estimate == pytest.approx(denoise_share(results) / 4, rel=0.01)


def test_of_a_step_in_which_some_images_were_guided_the_rows_count(study):
    masks = {"cfg": [1, 1, 1, 1], "last:1": [1, 1, 1, 0], "adaptive:0.9": [1, 1, 1, 0]}

    def changed(row):
        # Three of its eight images are guided in the second step, none after it.
        return row | {"batch": 8} | ({"nfe": 4 + 1 + 3 / 8} if "adapt" in row["variant"] else {})

    found = predictions(rowed(study(masks, changed=changed)))["adaptive:0.9"].loop.estimate
    took = 4 * UNGUIDED_S + (1 + 3 / 8) * (GUIDED_S - UNGUIDED_S)
    assert found == pytest.approx(1 - took / (4 * GUIDED_S), rel=1e-6)


def test_the_stored_study_of_adaptive_guidance_is_predicted_by_its_rows():
    """It saves 30.6 % of the rows, so more than half of the 38 % that no guidance saves."""
    found = predictions(read(RESULTS / "mini-sd" / "methods" / "time"))
    assert 0.22 < found["adaptive:0.997"].call.estimate < 0.24


@pytest.mark.parametrize("judged", ["last:1", "last:2", "unguided"])
def test_nothing_of_what_is_judged_enters_what_is_expected(study, judged):
    results = study(MASKS | {"last:2": [1, 1, 0, 0]})
    other = slowed(slowed(results, 3.0, variant=judged), 5.0, variant="cfg")
    runs = other.runs.assign(latency_s=other.runs["latency_s"].astype(float))
    theirs = runs["variant"].isin([judged, "cfg"])
    runs.loc[theirs, "latency_s"] *= 7
    assert predictions(replace(other, runs=runs))[judged] == predictions(results)[judged]


def test_the_baselines_guided_steps_count_where_no_other_variant_has_any(study):
    found = predictions(study(MASKS))["last:1"]
    assert found.loop.estimate == pytest.approx(1 / 4 * (1 - 1 / R), rel=0.05)


def test_of_the_one_variant_that_drops_guidance_nothing_is_expected(study):
    """Its own steps are all that there is, and they are what is judged."""
    summary = summarise(study({"cfg": [1, 1], "last:1": [1, 0]}))
    assert summary["predicted_saving"].isna().all()
    assert summary["ideal_saving"].tolist() == [0, 0.25]


def test_guided_rows_are_counted_as_the_baseline_has_them(study):
    """With a third evaluation in guided steps, one step less is as much as before."""
    masks = MASKS | {"last:2": [1, 1, 0, 0]}

    def changed(row):
        guided = sum(masks[row["variant"]])
        return row | {"nfe": 4 + 2 * guided}

    found = predictions(study(masks, changed=changed))["last:1"].loop.estimate
    assert found == pytest.approx(1 / 4 * (1 - 1 / R), rel=1e-6)


def accelerated(row):
    return row | {"accelerated": "deepcache" in row["variant"]}


def test_where_rows_are_other_work_nothing_is_ideal_or_expected(study):
    masks = MASKS | {"deepcache:3": [1, 1, 1, 1], "last:2": [1, 1, 0, 0]}
    results = study(masks, changed=accelerated)
    assert has_rows_of_its_own(results).to_dict() == {name: name == "deepcache:3" for name in masks}
    summary = summarise(results).set_index("variant")
    undefined = ["ideal_saving", "predicted_saving", "predicted_denoise_saving"]
    assert summary.loc["deepcache:3", undefined].isna().all()
    assert summary.drop("deepcache:3")[undefined].notna().all(axis=None)


def test_a_call_that_failed_makes_no_rows_of_its_own(study):
    def changed(row):
        failed = row["unit"] == "last:1/2/0"
        return (
            row
            | {"accelerated": None, "flop": None if failed else 10}
            | ({"status": "failed"} if failed else {})
        )

    assert not has_rows_of_its_own(study(MASKS, changed=changed)).any()


def test_what_is_expected_has_an_interval_over_repeats(study):
    results = study(MASKS | {"last:2": [1, 1, 0, 0]}, repeats=8)
    results.steps["latency_s"] *= np.random.default_rng(1).normal(1, 0.05, len(results.steps))
    others = replace(results, steps=results.steps[results.steps["variant"] == "last:2"])
    medians = step_medians(others)
    ratio = (3 * medians[True] + medians[False]) / (4 * medians[True])
    test = stats.ttest_1samp(np.log(ratio), 0).confidence_interval()
    expected = 1 - np.exp([np.log(ratio).mean(), test.high, test.low])
    found = predictions(results)["last:1"].loop
    np.testing.assert_allclose(found, expected)
    assert found.lo < found.estimate < found.hi
    few = predictions(study(MASKS | {"last:2": [1, 1, 0, 0]}, repeats=5))["last:1"].loop
    assert np.isnan([few.lo, few.hi]).all()


@pytest.mark.slow  # 200 made-up studies
def test_the_interval_holds_what_steps_cost_in_95_of_100_studies(study):
    masks = {"cfg": [1, 1, 1, 1], "last:1": [1, 1, 1, 0], "last:2": [1, 1, 0, 0]}
    results = study(masks)
    generator = np.random.default_rng(0)
    held = []
    for _ in range(200):
        noise = generator.normal(0, 0.1, len(results.steps))
        steps = results.steps.assign(latency_s=results.steps["latency_s"] * np.exp(noise))
        found = predictions(replace(results, steps=steps))["last:1"].loop
        held.append(found.lo <= 1 / 4 * (1 - 1 / R) <= found.hi)
    assert 0.91 < np.mean(held) < 0.99
