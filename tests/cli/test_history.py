import shutil

from tests.cli.commands import invoke


def test_a_baselines_history_is_told_and_plotted(quick_bench, tmp_path):
    past = shutil.copytree(quick_bench / "base", tmp_path / "base")
    baseline = next(past.iterdir())
    again = ["--accept", "again", "--force"]
    assert invoke("compare", baseline, quick_bench / "first", *again).exit_code == 0
    done = invoke("history", baseline, "--out", tmp_path / "past.png")
    assert done.exit_code == 0, done.output
    assert [line.split("  ")[1] for line in done.output.splitlines()[:2]] == ["the first", "again"]
    assert "  (--force: last:50%: of 6 repeats" in done.output
    assert (tmp_path / "past.png").stat().st_size > 1000
