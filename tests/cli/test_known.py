import shutil

import pandas as pd

from tests.cli.commands import invoke


def test_known_answers_are_printed_and_made_again_from_stored_images(small, tmp_path):
    folder = shutil.copytree(small[0], tmp_path / "study")
    first = invoke("known", folder)
    assert first.exit_code == 0, first.output
    assert "ssim" in first.output
    assert "Known answers" in first.output

    stored = pd.read_parquet(folder / "known.parquet")
    (folder / "known.parquet").unlink()
    second = invoke("known", folder)
    assert second.exit_code == 0, second.output

    # What took a call of its own stays away; the rest is the same.
    made = pd.read_parquet(folder / "known.parquet")
    kept = stored.merge(made, on=["metric", "answer", "prompt_id", "seed"], suffixes=("", "_made"))
    assert len(kept) == len(made) > 0
    pd.testing.assert_series_equal(kept["value"], kept["value_made"], check_names=False)


def test_a_study_without_metrics_is_refused(small, tmp_path):
    folder = shutil.copytree(small[0], tmp_path / "study")
    (folder / "known.parquet").unlink()
    text = (folder / "study.json").read_text()
    (folder / "study.json").write_text(text.replace('"ssim"\n', "").replace('["ssim"]', "[]"))
    done = invoke("known", folder)
    assert done.exit_code == 2
    assert "so no metric can be checked" in done.output
