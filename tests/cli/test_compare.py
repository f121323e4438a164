import json
import shutil

import pandas as pd

from sdbench.records.store import read
from tests.cli.commands import invoke


def test_a_run_compared_with_itself_passes_and_is_written(small, tmp_path):
    files = ["--markdown", tmp_path / "c.md", "--json", tmp_path / "c.json"]
    done = invoke("compare", small[0], small[0], *files)
    assert done.exit_code == 0, done.output
    assert "figures are the same" in done.output
    assert "undecided" in (tmp_path / "c.md").read_text()  # one repeat decides nothing
    assert {"variant", "figure", "verdict"} <= set(json.loads((tmp_path / "c.json").read_text())[0])


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
    assert "the studies differ in num_steps" in done.output


def test_another_study_takes_a_baselines_place_only_for_a_reason(quick_bench, folder, tmp_path):
    baseline = next(shutil.copytree(quick_bench / "base", tmp_path / "base").iterdir())
    assert invoke("compare", baseline, folder).exit_code == 2
    assert invoke("compare", baseline, folder, "--accept", "another study").exit_code == 0
    assert read(baseline).study["name"] == read(folder).study["name"]
