from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sdbench.analysis.environments import differing_environment
from sdbench.analysis.regression import (
    COMPARED,
    Limits,
    NotComparable,
    _precision,
    _times,
    compare,
    metric_bound,
)
from sdbench.analysis.timing import log_ratios, welch
from sdbench.analysis.timing import verdicts as judged
from sdbench.records.store import read

MASKS = {"cfg": [1, 1, 1, 1], "last:2": [1, 1, 0, 0], "unguided": [0, 0, 0, 0]}


@pytest.fixture(scope="module")
def made():
    """Studies by their number of repeats; `run` changes copies of them."""
    return {}


@pytest.fixture
def run(study, made):
    """A run of one study; `slower` multiplies a variant's time, `seed` draws its repeats' noise."""

    def build(*, seed=0, repeats=8, noise=0.01, slower=1.0, changed=lambda row: row, lpips=0.0):
        if repeats not in made:
            images = [
                {
                    "unit": f"{name}/0/0",
                    "variant": name,
                    "prompt_id": f"{pair}",
                    "seed": 0,
                    "lpips": 0.1,
                }
                for name in MASKS
                for pair in range(8)
            ]
            counts = {"peak_bytes": 100_000, "rows": 8, "flop": 80, "forwards": 4}
            made[repeats] = study(
                MASKS, repeats=repeats, changed=lambda row: row | counts, images=images
            )
        results = made[repeats]
        runs = pd.DataFrame([changed(row) for row in results.runs.to_dict("records")]).astype(
            results.runs.dtypes
        )
        factor = np.random.default_rng(seed).lognormal(sigma=noise, size=len(runs))
        runs["denoise_s"] *= factor * np.where(runs["variant"] == "last:2", slower, 1.0)
        images = results.images.assign(
            lpips=np.where(results.images["variant"] == "cfg", np.nan, 0.1 + lpips)
        )
        fields = {"model": "made-up", "num_steps": 4, "repeats": repeats}
        return replace(results, runs=runs, images=images, study=fields)

    return build


def verdicts(table, figure):
    return table[table["figure"] == figure].set_index("variant")["verdict"].to_dict()


def test_a_run_compared_with_itself_is_the_same(run):
    table = compare(run(), run())
    assert set(table["verdict"]) == {"same"}
    assert {"nfe", "rows", "flop", "peak_bytes", "lpips", "time ratio to cfg"} <= set(
        table["figure"]
    )


def test_a_planted_slowdown_of_five_percent_is_found(run):
    found = [
        {
            row["variant"]: row["verdict"]
            for row in _times(run(seed=2 * seed), run(seed=2 * seed + 1, slower=1.05), Limits())
        }
        for seed in range(20)
    ]
    assert sum(verdict["last:2"] == "regression" for verdict in found) >= 19
    assert sum(verdict["unguided"] == "regression" for verdict in found) == 0


def test_a_faster_variant_is_an_improvement(run):
    assert (
        verdicts(compare(run(), run(seed=1, slower=0.9)), "time ratio to cfg")["last:2"]
        == "improvement"
    )


def test_runs_of_the_same_code_raise_few_alarms():
    """2,000 pairs of runs that differ in noise alone; the level is over both variants together."""
    logs = np.random.default_rng(0).normal(0, 0.03, (2, 2000, 3, 8))  # run, pair, variant, repeat
    before, after = logs[:, :, 1:] - logs[:, :, :1]  # over the baseline of the same repeat
    limits = Limits(threshold=1e-6)
    told = judged(welch(before, after, limits), limits)
    alarms = np.isin(told, ["regression", "improvement"]).any(axis=1)
    assert alarms.mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000)


def test_a_run_is_judged_by_these_tests(run):
    """What the command says of two runs is what the simulation above says of their logarithms."""
    limits = Limits(threshold=1e-6)
    for seed in range(4):
        first, second = (
            run(seed=2 * seed + later, noise=0.03, slower=1 + 0.02 * later) for later in (0, 1)
        )
        logs = [np.stack(list(log_ratios(results).values())) for results in (first, second)]
        expected = judged(welch(*logs, limits), limits)
        assert [row["verdict"] for row in _times(first, second, limits)] == list(expected)


def test_the_test_is_welchs(run):
    first, second = run(), run(seed=1, slower=1.02)
    table = compare(first, second).set_index(["figure", "variant"])

    def log_ratios(results):
        times = results.runs.pivot_table("denoise_s", index="repeat", columns="variant")
        return np.log(times["last:2"] / times["cfg"])

    expected = stats.ttest_ind(
        log_ratios(second), log_ratios(first), equal_var=False
    ).confidence_interval(0.95)
    row = table.loc[("time ratio to cfg", "last:2")]
    assert (np.log1p(row["change_lo"]), np.log1p(row["change_hi"])) == pytest.approx(
        tuple(expected)
    )


@pytest.mark.parametrize("threshold", [0.03, 1e-6], ids=["that matters", "any"])
def test_recorded_noise_raises_few_alarms(threshold):
    """200 pairs of runs of 10 repeats, drawn from those of `sdbench bench` on a busy machine."""
    times = pd.read_csv(Path(__file__).with_name("recorded_noise.csv"))
    wide = np.log(times.pivot_table("denoise_s", index=["run", "repeat"], columns="variant"))
    ratios = wide.drop(columns="cfg").sub(wide["cfg"], axis=0)
    limits, generator, alarms = Limits(threshold=threshold), np.random.default_rng(0), 0
    for _ in range(200):
        drawn = ratios.to_numpy()[generator.permutation(len(ratios))[:20]]
        told = judged(welch(drawn[:10].T, drawn[10:].T, limits), limits)
        alarms += bool({"regression", "improvement"} & set(told))
    assert alarms <= 0.05 * 200


def test_nineteen_intervals_in_twenty_hold_the_true_change():
    """Two runs of 12 repeats of unequal noise, 1,000 times."""
    generator = np.random.default_rng(0)
    before = generator.normal(0, 0.02, (1000, 12))
    after = generator.normal(0.05, 0.05, (1000, 12))
    tests = welch(before, after)
    assert 0.93 <= np.mean((tests.lo <= 0.05) & (tests.hi >= 0.05)) <= 0.97


def test_few_and_noisy_repeats_are_undecided_and_say_how_many_would_decide(run):
    table = compare(run(repeats=6, noise=0.1), run(repeats=6, noise=0.1, seed=1))
    row = table[(table["figure"] == "time ratio to cfg") & (table["variant"] == "last:2")].iloc[0]
    assert row["verdict"] == "undecided"
    assert row["unstable"].startswith("baseline: times spread by ")
    assert row["detectable"] > 0.1
    spread = 0.1 * np.sqrt(2)  # of a ratio of two times
    expected = 2 * ((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * spread / np.log1p(0.03)) ** 2
    assert expected < row["repeats_needed"] < 4 * expected


def test_repeats_that_are_there_already_are_not_said_to_decide():
    """What changed by about half of the threshold may be undecided after repeats that find it."""
    logs = np.random.default_rng(0).normal(0, 0.02, (2, 1, 20))
    tests = welch(*logs)
    few, many = (_precision(tests, 0, repeats, "undecided", Limits()) for repeats in (6, 20))
    assert 6 < few["repeats_needed"] < 20
    assert many["repeats_needed"] is None
    assert many["detectable"] < 0.03


def test_few_repeats_name_no_number_of_repeats(run):
    rows = _times(run(repeats=5, noise=0.1), run(repeats=5, noise=0.1, seed=1), Limits())
    assert {row["verdict"] for row in rows} == {"undecided"}
    assert [row["repeats_needed"] for row in rows] == [None, None]
    assert np.isnan([row["detectable"] for row in rows]).all()


@pytest.mark.parametrize(
    ("figure", "changed", "verdict"),
    [
        ("rows", {"rows": 9}, "regression"),
        ("flop", {"flop": 79}, "changed"),
        ("peak_bytes", {"peak_bytes": 102_000}, "regression"),
        ("peak_bytes", {"peak_bytes": 98_000}, "changed"),
        ("peak_bytes", {"peak_bytes": 100_500}, "same"),
    ],
)
def test_what_a_machine_does_not_change_is_held_to_bounds(run, figure, changed, verdict):
    table = compare(
        run(), run(changed=lambda row: row | (changed if row["variant"] == "last:2" else {}))
    )
    assert verdicts(table, figure) == {"cfg": "same", "last:2": verdict, "unguided": "same"}


@pytest.mark.parametrize(
    ("by", "verdict"), [(0.003, "changed"), (-0.003, "changed"), (0.001, "same")]
)
def test_a_metric_may_move_to_neither_side(run, by, verdict):
    assert verdicts(compare(run(), run(lpips=by)), "lpips")["unguided"] == verdict


@pytest.mark.parametrize(
    ("figure", "before", "bound"),
    [
        ("lpips", 0.3, 0.002),
        ("lpips", 0.005, 0.00025),
        ("lpips_median", 0.005, 0.00025),
        ("lpips", 0.0, 1e-4),
        ("ssim", 0.9, 0.002),
        ("ssim", 0.99, 0.0005),
        ("ssim_changed", 0.99, 0.002),
        ("alignment", 0.9, 0.002),
        ("psnr", 15.0, 0.1),
    ],
)
def test_small_metrics_have_relative_bounds(figure, before, bound):
    assert metric_bound(figure, before) == pytest.approx(bound)


def test_a_small_lpips_that_doubles_has_changed(run):
    first, second = run(lpips=0.0015 - 0.1), run(lpips=0.003 - 0.1)
    assert verdicts(compare(first, second), "lpips")["last:2"] == "changed"


def test_a_figure_that_is_gone_is_missing(run):
    failed = run(
        changed=lambda row: row | ({"status": "failed"} if row["variant"] == "last:2" else {})
    )
    table = compare(run(), failed)
    assert set(table[table["variant"] == "last:2"]["verdict"]) == {"missing"}


def test_other_studies_are_refused(run):
    other = replace(run(), study={"model": "another", "num_steps": 5})
    with pytest.raises(NotComparable, match="they differ in model, num_steps"):
        compare(run(), other)


def test_other_machines_are_named(run):
    first = replace(
        run(),
        environment={"a": {"cpu": "x", "commit": "1", "packages": {"torch": "2", "sdbench": "1"}}},
    )
    second = replace(
        run(),
        environment={"b": {"cpu": "y", "commit": "2", "packages": {"torch": "3", "sdbench": "2"}}},
    )
    assert differing_environment(first, second) == ["cpu", "packages.torch"]
    with pytest.raises(NotComparable, match=r"these differ: cpu, packages\.torch"):
        compare(first, second, absolute=True)


def test_times_themselves_are_compared_on_one_machine_alone(run):
    steady = {
        "changed": lambda row: row | {"denoise_s": 1.0}
    }  # as on a machine that nothing else runs on
    table = compare(run(**steady), run(**steady, seed=1, slower=1.1), absolute=True)
    assert verdicts(table, "time of the loop") == {
        "cfg": "same",
        "last:2": "regression",
        "unguided": "same",
    }
    assert "time of the loop" not in set(compare(run(), run())["figure"])


def test_a_disturbed_run_says_what_disturbed_it(run):
    noisy = run(changed=lambda row: row | {"foreign_load": 0.5, "throttled": row["repeat"] < 2})
    table = compare(run(), noisy)
    told = table[table["figure"] == "time ratio to cfg"].set_index("variant")["unstable"]
    assert (
        told["last:2"] == "current: others took 0.5 cores, the device was held back in 2 of 8 calls"
    )


def test_tables_tell_times_and_what_changed(run):
    from sdbench.report.tables import comparison_markdown

    text = comparison_markdown(compare(run(), run(seed=1, lpips=0.01)))
    assert "| last:2 | time ratio to cfg |" in text
    assert "| unguided | lpips | 0.1 | 0.11 | +0.01 | changed |" in text
    assert "nfe" not in text


def test_stored_runs_compare_alike_from_the_columns_that_are_needed():
    folder = Path(__file__).parents[2] / "results" / "mini-sd" / "default"
    runs = [read(folder, columns=columns) for columns in (COMPARED, None)]
    some, whole = (compare(results, results) for results in runs)
    pd.testing.assert_frame_equal(some, whole, check_exact=True)
