import pytest

from tests.cli.commands import invoke


@pytest.mark.slow  # about a hundred masks
def test_a_plan_is_printed_with_its_verdicts(tmp_path):
    options = [
        "--num-steps",
        "4",
        "--pairs",
        "4",
        "--metric",
        "psnr",
        "--rounds",
        "1",
        "--out",
        tmp_path / "plans",
    ]
    done = invoke("plan", "--unguided", "2", *options)
    assert done.exit_code == 0, done.output
    assert all(word in done.output for word in ("plan of 2", "last:2", "steps:3", "plan-K.json"))
    written = {path.name for path in (tmp_path / "plans").iterdir()}
    assert {"plan-2.json", "judged.parquet", "plan.png", "timing"} <= written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a plan needs one of"),
        (["--unguided", "60"], "between 1 and 20 steps can be unguided, not 60"),
        (["--unguided", "ten"], "--unguided takes positive whole numbers"),
        (["--saving", "lots"], "--saving takes positive numbers, not 'lots'"),
        (["--max-lpips", "0.1", "--metric", "ssim"], "--max-lpips needs --metric lpips"),
        (["--unguided", "10", "--prompts-file", "a.txt"], "give both or none"),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_line_and_exit_code_2(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    refused = invoke(
        "plan", *(arguments if "--metric" in arguments else ["--metric", "ssim", *arguments])
    )
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not list(tmp_path.rglob("*.parquet"))
