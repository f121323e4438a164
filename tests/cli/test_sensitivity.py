import pytest

from tests import alexnet
from tests.cli.commands import invoke

SWEEP = [
    "sensitivity",
    "--num-steps",
    "4",
    "--metrics",
    "ssim,alignment",
    "--seeds",
    "0",
    "--prompts-file",
]


def test_a_sweep_writes_its_table_and_its_picture_and_says_what_it_took(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(
        "a large red circle on a white background\na small blue ring on a black background\n"
    )
    done = invoke(*SWEEP, prompts, "--kind", "last", "--out", tmp_path / "sweep")
    assert done.exit_code == 0, done.output
    assert (
        "14 denoiser rows per (prompt, seed) pair; one call per mask would take 30" in done.output
    )
    assert {"sensitivity.parquet", "sensitivity.png"} <= {
        path.name for path in (tmp_path / "sweep").iterdir()
    }
    again = invoke(*SWEEP, prompts, "--kind", "last", "--out", tmp_path / "sweep")
    assert again.exit_code == 2
    assert "--resume continues it" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "middle"], "unknown kind 'middle'; there are: single"),
        (["--masks", "10"], "mask '10' has 2 steps but the loop runs 20"),
        (["--metrics", "beauty"], "unknown metric 'beauty'; there are: lpips"),
        (["--resume"], "--resume needs --out"),
    ],
)
def test_a_sweep_that_cannot_run_is_one_line_and_exit_code_2(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    refused = invoke("sensitivity", "--metrics", "ssim", *arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_estimate_prints_its_curve_its_rows_and_its_memory(tmp_path):
    with alexnet.made_up():
        done = invoke(
            *("sensitivity", "--estimate", "--num-steps", "4", "--seeds", "0"),
            *("--prompt", "a large red circle on a white background", "--out", tmp_path / "out"),
        )
    assert done.exit_code == 0, done.output
    assert "64 denoiser rows per (prompt, seed) pair" in done.output  # 8, and 14 at each step
    assert "peak memory" in done.output
    assert "first-order estimate of lpips without guidance at each step alone" in done.output
    assert (tmp_path / "out" / "sensitivity.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimate", "--kind", "last"], "--estimate is of every single step"),
        (["--estimate", "--metrics", "ssim"], "'ssim' is no squared distance of features"),
        (["--estimate", "--growth"], "an estimate follows no branch"),
    ],
)
def test_an_estimate_that_cannot_run_is_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with alexnet.made_up():
        refused = invoke("sensitivity", "--num-steps", "4", *arguments)
    assert refused.exit_code == 2
    assert message in " ".join(refused.stderr.split())
    assert not list(tmp_path.rglob("*.parquet"))
