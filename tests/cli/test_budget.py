import json

import pytest

from tests.cli.commands import invoke, words

SMALL = ["--num-steps", "4", "--pairs", "4", "--metric", "ssim", "--most-steps", "6"]


@pytest.mark.slow  # dozens of calls
@pytest.mark.parametrize(
    ("limit", "ways"),
    [
        (["--nfe", "4,5"], ["--methods", "steps,mask,lora", "--schedulers", "dpmpp-2m"]),
        (["--saving", "40%"], ["--methods", "steps,unguided"]),
    ],
)
def test_a_budget_is_printed_with_its_verdicts_and_written(tmp_path, limit, ways):
    done = invoke("budget", *limit, *SMALL, *ways, "--out", tmp_path / "budget")
    assert done.exit_code == 0, done.output
    assert "chosen" in done.output
    assert "has the best mean ssim" in words(done)
    recipes = sorted((tmp_path / "budget").glob("recipe-*.json"))
    assert len(recipes) == len(limit[1].split(","))
    found = json.loads(recipes[0].read_text())["variant"]
    again = invoke(
        *("run", "--variants", f"cfg,recipe:{recipes[0]}", "--num-steps", "4", "--repeats", "1"),
        *("--metrics", "ssim", "--out", tmp_path / "study"),
    )
    assert again.exit_code == 0, (found, again.output)
    assert (tmp_path / "budget" / "budget.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --nfe, --seconds and --saving"),
        (["--nfe", "8", "--saving", "10%"], "give one of --nfe, --seconds and --saving"),
        (["--nfe", "0"], "--nfe takes positive whole numbers"),
        (["--nfe", "1", "--methods", "steps"], "does not pay for one step of any method"),
        (["--nfe", "8,8"], "budgets has '8' twice, as entries 1 and 2"),
        (["--seconds", "soon"], "--seconds takes positive numbers, not 'soon'"),
        (["--nfe", "8", "--resume"], "--resume needs --out"),
        (["--saving", "40%", "--resume", "--out", "x"], "resume with --seconds or --nfe"),
        (["--saving", "100%"], "--saving takes shares below 100%"),
        (["--nfe", "8", "--methods", "steps,teleport"], "unknown variant 'teleport'"),
        (["--nfe", "8", "--methods", "deepcache:3"], "give a budget of time"),
        (["--nfe", "8", "--schedulers", "fast"], "expected scheduler:NAME; there are: ddim"),
        (["--nfe", "8", "--metric", "lips"], "unknown metric 'lips'"),
        (["--nfe", "8", "--metric", "ssim=no"], "--metric takes positive numbers, not 'no'"),
        (["--nfe", "8", "--reference", "cfg@0"], "a number of steps behind @ is at least 1"),
    ],
)
def test_a_budget_that_cannot_be_spent_is_one_line_and_exit_code_2(
    tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    metric = [] if "--metric" in arguments else ["--metric", "ssim"]
    refused = invoke("budget", *arguments, *metric, "--num-steps", "4", "--pairs", "4")
    assert refused.exit_code == 2
    assert message in " ".join(refused.stderr.split())
    assert not list(tmp_path.rglob("*.parquet"))
