from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.regression import compare
from sdbench.analysis.stability import (
    disturbance,
    disturbances,
    is_undecided,
    undecided,
    unstable,
    untimed,
)
from sdbench.analysis.tables import step_profile, summarise


def runs(**columns):
    base = {"variant": "cfg", "phase": "measured", "status": "ok"}
    base |= {"foreign_load": 0.0, "foreign_processes": None, "throttled": False}
    rows = pd.DataFrame(
        [
            base | dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
    )
    return rows.astype(
        {"foreign_load": "float64", "foreign_processes": "Int64", "throttled": "boolean"}
    )


def test_a_calm_run_has_nothing_against_it():
    assert disturbances(runs(foreign_load=[0.0, 0.05])) == {}


def test_warmups_and_failed_calls_do_not_count():
    table = runs(
        foreign_load=[0.9, 0.9, 0.0],
        phase=["warmup", "measured", "measured"],
        status=["ok", "failed", "ok"],
    )
    assert disturbances(table) == {}


def test_every_variant_has_its_own():
    table = runs(variant=["cfg", "last:2"], foreign_load=[0.3, 0.0], throttled=[False, True])
    assert disturbances(table) == {
        "cfg": ["others took 0.3 cores"],
        "last:2": ["the device was held back in 1 of 1 calls"],
    }


def test_others_on_the_gpu_are_told():
    table = runs(foreign_processes=[0, 2, None])
    assert disturbances(table) == {"cfg": ["others were on the GPU in 1 of 3 calls"]}


def test_what_was_not_recorded_is_no_disturbance():
    assert disturbances(runs(foreign_load=[None, None], throttled=[None, None])) == {}


@pytest.mark.parametrize(("noise", "reason"), [(0.01, None), (0.1, "times spread by ")])
def test_a_baseline_whose_ratios_spread_by_over_five_percent_is_unstable(study, noise, reason):
    results = study({"cfg": [1], "unguided": [0]}, repeats=20)
    factor = np.random.default_rng(0).lognormal(sigma=noise, size=len(results.runs))
    results.runs["denoise_s"] *= factor
    told = unstable(results)
    assert told.get("unguided", "")[:16] == (reason or "")
    assert set(told) <= {"unguided"}  # a ratio to itself has no spread


def test_a_run_without_times_of_its_own_does_not_show_that_it_is_stable(study):
    results = study({"cfg": [1], "unguided": [0]}, repeats=8)
    results.runs["exclusive"] = pd.array([False] * len(results.runs), dtype="boolean")
    assert unstable(results) == {"unguided": "of 6 repeats that tell how times spread there are 0"}


def test_few_repeats_do_not_show_that_a_baseline_is_stable(study):
    results = study({"cfg": [1], "unguided": [0]}, repeats=5)
    assert unstable(results) == {"unguided": "of 6 repeats that tell how times spread there are 5"}


def level(results, factors, **changed):
    """Bring the baseline's calls and their steps to levels, one per repeat, and change runs."""
    factor = results.runs["repeat"].map(dict(enumerate(factors))).astype(float)
    steps = results.steps.assign(latency_s=results.steps["repeat"].map(dict(enumerate(factors))))
    runs = results.runs.assign(denoise_s=factor, latency_s=factor, **changed)
    return replace(results, runs=runs, steps=steps.astype({"latency_s": float}))


def test_a_calm_run_has_no_disturbance(study):
    results = level(study({"cfg": [1, 1]}), [1.0, 1.1, 1.0, 1.05, 1.0, 1.1])
    assert disturbance(results) == ""
    assert set(summarise(results)["disturbance"]) == {""}


def test_a_disturbed_run_says_how_much_and_in_how_many_rounds(study):
    results = level(study({"cfg": [1, 1], "last:1": [1, 0]}), [1.0, 1.5, 1.0, 1.0, 1.3, 1.0])
    told = "2 of 6 rounds of calls: calls of equal work were up to 50% apart"
    assert disturbance(results) == told
    assert list(summarise(results)["disturbance"]) == [told, told]
    assert set(step_profile(results)["disturbance"]) == {told}
    assert set(compare(results, results)["disturbance"]) == {f"baseline: {told}; current: {told}"}


def test_load_and_throttling_are_told_with_what_they_were(study):
    results = level(study({"cfg": [1]}), [1.0] * 6, foreign_load=1.94, throttled=True)
    results.runs["throttled"] = results.runs["throttled"].astype("boolean")
    assert disturbance(results) == (
        "6 of 6 rounds of calls: others took up to 1.9 cores, the device was held back in 6 calls"
    )


def test_rounds_that_were_measured_again_are_left_out(study):
    results = level(study({"cfg": [1]}, repeats=8), [1.5, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0])
    marks = pd.array(results.runs["repeat"].isin([0, 2]), dtype="boolean")
    results.runs["disturbed"] = marks
    assert disturbance(results).endswith("50% apart; 2 of them left out")

    # Where too few others are left, they count.
    results.runs["disturbed"] = pd.array(results.runs["repeat"] < 4, dtype="boolean")
    assert "left out" not in disturbance(results)


@pytest.mark.parametrize(
    ("lo", "hi", "told"), [(0.1, 0.29, False), (0.1, 0.31, True), (np.nan, np.nan, False)]
)
def test_a_saving_is_undecided_from_twenty_points_on(lo, hi, told):
    assert is_undecided(lo, hi) == told
    table = pd.DataFrame({"saving_lo": [lo], "saving_hi": [hi]})
    assert undecided(table, "saving").tolist() == [told]


def test_untimed_is_what_has_a_prediction_and_no_time():
    table = pd.DataFrame({"saving": [0.1, np.nan, np.nan], "predicted_saving": [0.1, 0.2, np.nan]})
    assert untimed(table, "saving").tolist() == [False, True, False]
    assert not untimed(table[["saving"]], "saving").any()
