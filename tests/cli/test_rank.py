import shutil

import pandas as pd
import pytest

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


@pytest.fixture
def disturbed(small, tmp_path):
    """The small study, if another process had taken a core and a half in every call."""
    folder = shutil.copytree(small[0], tmp_path / "disturbed")
    runs = pd.read_parquet(folder / "runs.parquet")
    runs.assign(foreign_load=1.5, latency_s=60.0).to_parquet(folder / "runs.parquet", index=False)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("rank", "--metric", "ssim"),
        ("rank", "--metric", "ssim", "--pair", "last:50%,cached:2,split"),
        ("report",),
        ("frontier", "--metric", "ssim"),
    ],
)
def test_a_disturbed_study_is_said_to_be_so_before_anything_else(disturbed, command):
    done = invoke(command[0], disturbed, *command[1:])
    assert done.exit_code == 0, done.output
    assert words(done).lstrip("*").startswith("DISTURBED: 2 of 2 rounds of calls: others took up")
