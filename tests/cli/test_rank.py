from tests.cli.commands import invoke, words


def test_variants_are_ranked_by_a_metric(small):
    done = invoke("rank", small[0], "--metric", "ssim")
    assert done.exit_code == 0, done.output
    assert "last:50%" in done.output
    assert invoke("rank", small[0], "--metric", "lpips").exit_code == 2


def test_a_study_without_times_is_ranked(untimed):
    done = invoke("rank", untimed, "--metric", "ssim")
    assert done.exit_code == 0, done.output


def test_two_variants_are_compared_pair_by_pair(small):
    pair = ["--metric", "ssim", "--pair", "last:50%,cached:2,split"]
    done = invoke("rank", small[0], *pair, "--margin", "0.5")
    assert done.exit_code == 0, done.output
    assert "last:50% against cached:2,split in ssim" in words(done)
    assert "equivalence within 0.5" in words(done)


def test_what_belongs_to_a_pair_needs_one(small):
    for option in (["--margin", "0.1"], ["--with", small[0]], ["--shared"]):
        done = invoke("rank", small[0], "--metric", "ssim", *option)
        assert done.exit_code == 2
        assert "need --pair" in words(done)
    done = invoke("rank", small[0], "--metric", "ssim", "--pair", "last:50%")
    assert "--pair takes two variants" in words(done)
