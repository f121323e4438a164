from tests.cli.commands import invoke


def test_variants_are_ranked_by_a_metric(small):
    done = invoke("rank", small[0], "--metric", "ssim")
    assert done.exit_code == 0, done.output
    assert "last:50%" in done.output
    assert invoke("rank", small[0], "--metric", "lpips").exit_code == 2


def test_a_study_without_times_is_ranked(untimed):
    done = invoke("rank", untimed, "--metric", "ssim")
    assert done.exit_code == 0, done.output
