from tests.cli.commands import invoke


def test_a_frontier_is_a_table_and_a_picture(small, tmp_path):
    done = invoke("frontier", small[0], "--metric", "ssim", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "| **cfg** | 4 |" in done.output
    assert "Bold: every other variant was shown to be slower or worse." in done.output
    assert (tmp_path / "frontier-ssim.png").stat().st_size > 10_000


def test_a_frontier_takes_its_times_from_another_study(small, tmp_path):
    done = invoke("frontier", small[0], "--metric", "ssim", "--timing", small[0], "--out", tmp_path)
    assert done.exit_code == 0, done.output


def test_a_study_without_times_has_a_frontier(untimed, tmp_path):
    done = invoke("frontier", untimed, "--metric", "ssim", "--out", tmp_path)
    assert done.exit_code == 0, done.output
