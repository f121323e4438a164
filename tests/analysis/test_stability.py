import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.stability import disturbances, unstable


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
