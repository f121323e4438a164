import json
import shutil

import pandas as pd

from sdbench.records.baselines import read_history
from sdbench.records.store import read
from tests.cli.commands import invoke, words

UNDECIDED = "a slowdown of the threshold's size is neither found nor ruled out"


def test_a_run_compared_with_itself_is_written_and_passes_where_undecided_times_may(
    small, tmp_path
):
    files = ["--markdown", tmp_path / "c.md", "--json", tmp_path / "c.json"]
    done = invoke("compare", small[0], small[0], "--undecided", "pass", *files)
    assert done.exit_code == 0, done.output
    assert "figures are the same" in done.output
    # One repeat decides nothing. What disturbed it, if anything did, comes first.
    assert "**UNDECIDED: " in (tmp_path / "c.md").read_text().partition("|")[0]
    assert {"variant", "figure", "verdict"} <= set(json.loads((tmp_path / "c.json").read_text())[0])


def test_times_that_are_undecided_fail_with_a_code_of_their_own(small):
    done = invoke("compare", small[0], small[0])
    assert done.exit_code == 3
    assert f"{UNDECIDED}. 6 repeats of both runs would tell how many decide." in words(done)


def test_a_run_whose_times_may_spread_is_no_baseline_unless_forced(small, tmp_path):
    base = tmp_path / "base"
    done = invoke("compare", base, small[0], "--accept", "the first")
    assert done.exit_code == 2
    assert (
        "be the baseline (last:50%: of 6 repeats that tell how times spread there are 1"
        in words(done)
    )
    assert not base.exists()

    assert invoke("compare", base, small[0], "--accept", "the first", "--force").exit_code == 0
    assert "there are 1" in read_history(base)["forced"].iloc[0]
    done = invoke("compare", base, small[0], "--undecided", "pass")
    assert "warning: the baseline is unstable (last:50%: of 6 repeats" in words(done)


def test_a_missing_variant_fails_a_comparison_and_another_study_cannot_compare(small, tmp_path):
    folder = shutil.copytree(small[0], tmp_path / "x")
    runs = pd.read_parquet(folder / "runs.parquet")
    runs.loc[runs["variant"] == "unguided", "status"] = "failed"
    runs.to_parquet(folder / "runs.parquet", index=False)
    assert invoke("compare", small[0], folder).exit_code == 1

    study = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(study | {"num_steps": 3}))
    done = invoke("compare", small[0], folder)
    assert done.exit_code == 2
    assert "they differ in num_steps" in done.output


def test_another_study_takes_a_baselines_place_only_for_a_reason(quick_bench, folder, tmp_path):
    baseline = next(shutil.copytree(quick_bench / "base", tmp_path / "base").iterdir())
    assert invoke("compare", baseline, folder).exit_code == 2
    accepted = invoke("compare", baseline, folder, "--accept", "another study", "--force")
    assert accepted.exit_code == 0, accepted.output
    assert read(baseline).study["name"] == read(folder).study["name"]
