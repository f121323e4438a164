import pytest

from tests.cli.commands import QUICK, invoke


@pytest.mark.slow
def test_shards_run_apart_and_are_put_together(tmp_path):
    pairs = ["--seeds", "0,1", "--prompt", "a small blue ring on a black background", "--batch", 1]
    for number in (1, 2):
        done = invoke(*QUICK, *pairs, "--shard", f"{number}/2", "--out", tmp_path / str(number))
        assert done.exit_code == 0, done.output
    done = invoke("gather", tmp_path / "whole", tmp_path / "1", tmp_path / "2")
    assert done.exit_code == 0, done.output
    assert "6 calls of 2 shards" in done.output  # a warm-up of each variant, and two batches
    done = invoke("gather", tmp_path / "half", tmp_path / "1")
    assert done.exit_code == 2
    assert "shard 2/2 is missing" in done.stderr
