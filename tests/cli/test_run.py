import json
import shutil

import pytest

from sdbench.cli import run as command
from sdbench.cli.values import study_fields
from sdbench.records.remote import Remote
from sdbench.records.store import read
from sdbench.study import local
from tests.cli.commands import QUICK, invoke, words


def test_a_run_writes_tables_and_pictures(folder):
    assert len(read(folder).runs) == 2 * 3
    assert {"grid.png", "steps.png", "frontier.png"} <= {path.name for path in folder.iterdir()}


def test_the_table_and_its_legend_are_printed(folder):
    done = invoke(*QUICK, "--out", folder, "--resume")
    assert "last:50%" in done.output
    assert "NFE: denoiser evaluations per image" in done.output
    assert "[lo,hi]: 95 % interval, where there are enough samples" in words(done)


def test_parts_that_ran_under_other_settings_are_said_so(folder, tmp_path):
    """As where a study goes on with another attention backend, or on another machine."""
    folder = shutil.copytree(folder, tmp_path / "run")
    record = folder / "environment.json"
    known = json.loads(record.read_text())
    (own,) = known.values()
    record.write_text(json.dumps(known | {"other": own | {"cpu": "Another"}}))
    again = invoke(*QUICK, "--out", folder, "--resume")
    assert "Parts of this study ran on another machine" in words(again)
    assert "(cpu): absolute times do not compare" in words(again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "sd99", "--prompt", "a"], "unknown model 'sd99'; there are: mini-sd"),
        (["--model", "you/yours"], "--model you/yours needs --prompt or --prompts-file: only"),
        (
            ["--variants", "cfg,nonsense"],
            "'nonsense'; `sdbench variants` lists all",
        ),
        (["--variants", "cfg,last:120%"], "'120%' is not between 0% and 100%"),
        (["--num-steps", "0"], "--num-steps takes positive whole numbers, separated by commas"),
        (["--num-steps", "-4"], "--num-steps takes positive whole numbers, separated by commas"),
        (["--prompt", ""], "prompts must be a list of texts, none of them empty"),
        (["--metrics", "beauty"], "unknown metric 'beauty'; there are: lpips"),
        (["--seeds", "0,x"], "--seeds takes whole numbers"),
        (
            ["--variants", "cfg,mask:101", "--metrics", "ssim"],
            "the schedule has 3 steps but the loop runs 20",
        ),
        (["--arguments", "[1]"], "--arguments takes a JSON object"),
        (["none.toml"], "study file 'none.toml' cannot be read"),
        (["--resume"], "--resume needs --out"),
        (["--repeats", "until soon"], "or a text such as 'until 2 points', not 'until soon'"),
        (["--repeats", "0"], "repeats must be a whole number of at least 1, not 0"),
        (["--precision", "0"], "--precision takes positive numbers, not '0'"),
        (["--precision", "2", "--repeats", "6"], "give --repeats or --precision, not both"),
        (["--quick", "--protocol", "mini-sd"], "--quick is a study by itself"),
        (["--timing", "later"], "unknown timing 'later'; there are: lockstep, calls"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    refused = invoke("run", *arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_a_study_is_refused(folder):
    refused = invoke(*QUICK, "--out", folder)
    assert refused.exit_code == 2
    assert "--resume continues it, --overwrite replaces it" in refused.stderr


def test_a_truncated_table_is_named(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    (broken / "steps.parquet").write_bytes((folder / "steps.parquet").read_bytes()[:200])
    refused = invoke(*QUICK, "--out", broken, "--resume")
    assert refused.exit_code == 2
    assert "steps.parquet" in refused.stderr


def test_a_failed_call_ends_in_exit_code_1(tmp_path, monkeypatch):
    observe = local.observe

    def failing(pipe, unit, work, **how):
        if unit.variant.name == "last:50%":
            raise RuntimeError("out of luck")
        return observe(pipe, unit, work, **how)

    monkeypatch.setattr(local, "observe", failing)
    done = invoke(*QUICK, "--out", tmp_path / "x")
    assert done.exit_code == 1
    assert "failed: last:50%: RuntimeError: out of luck" in done.stderr


def test_an_interruption_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*arguments, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "observe", interrupted)
    done = invoke(*QUICK, "--out", tmp_path / "x")
    assert done.exit_code == 130
    assert "continue with --resume" in words(done)
    assert len(read(tmp_path / "x").runs) == 0


def test_an_estimate_of_a_precision_is_a_range(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*QUICK, "--dry-run", "--precision", "2")
    assert "give --repeats or --precision, not both" in done.stderr
    options = ["--num-steps", "2", "--variants", "cfg,last:50%", "--metrics", "ssim"]
    done = invoke("run", *options, "--dry-run", "--precision", "2")
    assert "26 to 98 calls, about" in words(done)


def test_a_precision_is_repeats_until_so_many_points():
    assert study_fields({"precision": "2.0"}) == {"repeats": "until 2 points"}
    assert study_fields({"repeats": "until 2 points"}) == {"repeats": "until 2 points"}
    assert study_fields({"repeats": "7"}) == {"repeats": 7}


def test_a_dry_run_only_estimates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*QUICK, "--dry-run")
    assert done.exit_code == 0
    assert "6 calls, about" in done.output
    assert not list(tmp_path.iterdir())


def test_a_method_that_cannot_run_is_shown_with_its_reason(small):
    folder, done = small
    assert done.exit_code == 0, done.output
    reason = "diffusers has no caches for UNet2DConditionModel"
    assert f"unsupported: pab:2: {reason}" in words(done)
    expected = "cfg last:50% cached:2,split pab:2 unguided steps:1 random:50%@0..1 scale:1.4"
    assert list(read(folder).runs["variant"].unique()) == expected.split()


@pytest.mark.slow
def test_a_run_at_a_url_leaves_tables_and_pictures_there():
    url = "memory://cli/study"
    done = invoke(*QUICK, "--out", url)
    assert done.exit_code == 0, done.output
    assert f"Tables and pictures are in {url}" in done.output
    assert {"runs.parquet", "grid.png", "steps.png", "frontier.png"} <= set(Remote(url).files())
    assert len(read(url).runs) == 2 * 3
    assert invoke(*QUICK, "--out", url).exit_code == 2
    assert invoke(*QUICK, "--out", url, "--resume").exit_code == 0


def test_a_try_out_says_that_it_is_one(tmp_path):
    steps = ("--num-steps", "4", "--repeats", "1", "--warmups", "0")
    done = invoke("run", "--quick", *steps, "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert "Only 2 images of each variant: what they show is a try-out, not a result." in words(
        done
    )
    assert read(tmp_path / "out").study["name"] == "quick"


def test_the_default_study_says_what_it_will_do_and_how_to_make_it_shorter(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run_study", lambda *_, **__: None)
    monkeypatch.setattr(command, "_report", lambda *_, **__: None)
    said = words(invoke("run"))
    assert "mini-sd: 10 variants on 8 pairs of prompt and seed, 20 steps, w = 5" in said
    assert "minutes of computing here" in said
    assert "sdbench run --quick" in said
