import shutil

import pandas as pd
import pytest

from tests.cli.commands import bench


@pytest.mark.slow
def test_a_benchmark_runs_against_its_baseline(quick_bench):
    files = ["--json", quick_bench / "second.json"]
    done = bench(quick_bench, "second", "--undecided", "pass", *files)
    assert done.exit_code == 0, done.output
    table = pd.read_json(quick_bench / "second.json")
    assert set(table.loc[~table["figure"].str.startswith("time"), "verdict"]) == {"same"}


def test_a_benchmark_fails_where_more_is_evaluated(quick_bench):
    worse = shutil.copytree(quick_bench / "base", quick_bench / "worse")
    baseline = next(worse.iterdir())
    runs = pd.read_parquet(baseline / "runs.parquet")
    runs.loc[runs["variant"] == "last:50%", "rows"] -= 1
    runs.to_parquet(baseline / "runs.parquet", index=False)
    done = bench(quick_bench, "third", "--baselines", worse)
    assert done.exit_code == 1, done.output
    assert "regression" in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "much"], "--threshold takes positive numbers, not 'much'"),
        (["--undecided", "ignore"], "--undecided takes fail or pass, not 'ignore'"),
        (["--accept", " "], "--accept needs a reason"),
        (["--force"], "--force needs --accept REASON"),
    ],
)
def test_what_does_not_fit_is_told_before_the_run(quick_bench, options, message):
    done = bench(quick_bench, "fifth", *options)
    assert done.exit_code == 2
    assert message in done.output
    assert not (quick_bench / "fifth").exists()


def test_a_benchmark_without_a_baseline_says_how_to_make_one(quick_bench):
    done = bench(quick_bench, "fourth", "--baselines", quick_bench / "nowhere")
    assert done.exit_code == 2
    assert "--accept REASON makes this run the baseline" in done.output
    assert not (quick_bench / "fourth").exists()
