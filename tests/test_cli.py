import json
import shutil

import pandas as pd
import pytest
from typer.testing import CliRunner

from sdbench.cli import app
from sdbench.models import registry
from sdbench.records.remote import Remote
from sdbench.records.store import read
from sdbench.study import local

QUICK = [
    "run",
    "--num-steps",
    "2",
    "--repeats",
    "1",
    "--variants",
    "cfg,last:50%",
    "--metrics",
    "ssim",
]


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module", autouse=True)
def layout_as_it_is():
    """Choosing a memory format takes seconds at every opening of the model; it has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_lay_out", lambda pipe: None)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "study"
    done = invoke(*QUICK, "--out", out)
    assert done.exit_code == 0, done.output
    return out


def test_a_run_writes_tables_and_pictures(folder):
    assert len(read(folder).runs) == 2 * 2
    assert {"grid.png", "steps.png", "frontier.png"} <= {path.name for path in folder.iterdir()}


def test_the_table_and_its_legend_are_printed(folder):
    printed = invoke(*QUICK, "--out", folder, "--resume").output
    assert "last:50%" in printed
    assert "NFE: denoiser evaluations per image" in printed
    assert "[lo,hi]: 95 % confidence interval" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "sd99"], "unknown model 'sd99'; there are: mini-sd"),
        (["--variants", "cfg,nonsense"], "unknown variant 'nonsense'; there are: cfg"),
        (["--variants", "cfg,last:120%"], "'120%' is not between 0% and 100%"),
        (["--num-steps", "0"], "num_steps must be a whole number of at least 1, not 0"),
        (["--num-steps", "-4"], "num_steps must be a whole number of at least 1, not -4"),
        (["--prompt", ""], "prompts must be texts that are not empty"),
        (["--metrics", "beauty"], "unknown metric 'beauty'; there are: lpips"),
        (["--seeds", "0,x"], "--seeds takes whole numbers"),
        (
            ["--variants", "cfg,mask:101", "--metrics", "ssim"],
            "the schedule has 3 steps but the loop runs 50",
        ),
        (["--arguments", "[1]"], "--arguments takes a JSON object"),
        (["none.toml"], "study file 'none.toml' cannot be read"),
        (["--resume"], "--resume needs --out"),
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

    def failing(pipe, unit, work):
        if unit.variant.name == "last:50%":
            raise RuntimeError("out of luck")
        return observe(pipe, unit, work)

    monkeypatch.setattr(local, "observe", failing)
    done = invoke(*QUICK, "--out", tmp_path / "x")
    assert done.exit_code == 1
    assert "failed: last:50%: RuntimeError: out of luck" in done.stderr


def test_an_interruption_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "observe", interrupted)
    done = invoke(*QUICK, "--out", tmp_path / "x")
    assert done.exit_code == 130
    assert "continue with --resume" in " ".join(done.output.split())
    assert len(read(tmp_path / "x").runs) == 0


def test_a_dry_run_only_estimates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*QUICK, "--dry-run")
    assert done.exit_code == 0
    assert "4 calls, about" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("models", ["mini-sd"]),
        ("variants", ["last:20%", "random:10@7", "2305.09847"]),
        ("env", ["python", "torch", "cores"]),
    ],
)
def test_the_registries_print(command, words):
    printed = invoke(command).output
    assert all(word in printed for word in words)


@pytest.mark.network
def test_weights_says_where_lpips_finds_its_network():
    printed = invoke("weights").output
    assert "sha256" in printed


def test_costs_are_counted_without_running():
    printed = invoke("cost", "--model", "sd15", "--height", "512", "--count-only")
    assert printed.exit_code == 0, printed.output
    rows = [line.split() for line in printed.output.splitlines()[1:]]
    assert [row[3:7] for row in rows] == [
        ["1", "guided", "2", "1.61"],
        ["1", "unguided", "1", "0.803"],
    ]


@pytest.mark.slow  # traces the allocator in four warm-ups
def test_costs_are_measured(tmp_path):
    options = ["--num-steps", "10", "--repeats", "1", "--out", tmp_path]
    printed = invoke("cost", "--model", "mini-sd", "--height", "64", *options)
    assert printed.exit_code == 0, printed.output
    words = " ".join(printed.output.split())
    assert "64 x 64, batch 1: guided step" in words
    assert "last:20% 10.0%" in words
    assert "why not ideal:" in words
    assert len(read(tmp_path / "64x64-batch1").runs) == 4 * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sd15", "--height", "500", "--count-only"], "height and width must be multiples of 8"),
        (["sd15", "--height", "tall"], "--height takes positive whole numbers"),
        (["sd15", "--height", "512", "--batch", "0"], "--batch takes positive whole numbers"),
        (
            ["mini-sd", "--height", "64", "--count-only"],
            "only architectures are counted without running: sd15",
        ),
        (["sd99", "--height", "64"], "unknown model 'sd99'"),
        (
            ["mini-sd", "--height", "64", "--execution", "lazy"],
            "unknown execution 'lazy'; there are: eager, compile",
        ),
    ],
)
def test_a_cost_that_cannot_be_told_is_one_line_and_exit_code_2(arguments, message):
    refused = invoke("cost", "--model", *arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


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
        (["--masks", "10"], "mask '10' has 2 steps but the loop runs 50"),
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
        (["--unguided", "60"], "between 1 and 50 steps can be unguided, not 60"),
        (["--unguided", "ten"], "--unguided takes positive whole numbers"),
        (["--saving", "lots"], "--saving takes positive numbers, not 'lots'"),
        (["--max-lpips", "0.1", "--metric", "ssim"], "--max-lpips bounds LPIPS"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--w", "1"], "a guidance scale of 1 is no guidance to learn"),
        (["--w-range", "8", "2"], "goes up from 1 or more, not from 8 to 2"),
        (["--rank", "0"], "rank must be at least 1, not 0"),
        (["--model", "some/one"], "the guidance scale of 'some/one' is not known here"),
        (["--model", "some/one", "--w", "7.5"], "a student needs --held-out-file"),
        (["--images", "folder"], "--images is for --data images"),
        (["--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_what_cannot_be_distilled_is_one_line_and_nothing_is_written(tmp_path, arguments, message):
    done = invoke("distill", "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished study with a method that cannot run here, and what the command said."""
    folder = tmp_path_factory.mktemp("small") / "x"
    variants = "cfg,last:50%,cached:2,split,pab:2"
    return folder, invoke(
        *QUICK[:5], "--variants", variants, "--metrics", "ssim", "--controls", "--out", folder
    )


def test_a_method_that_cannot_run_is_shown_with_its_reason(small):
    folder, done = small
    assert done.exit_code == 0, done.output
    assert "unsupported: pab:2: diffusers has no caches for UNet2DConditionModel" in " ".join(
        done.output.split()
    )
    expected = [
        "cfg",
        "last:50%",
        "cached:2,split",
        "pab:2",
        "unguided",
        "steps:1",
        "random:50%@0",
    ]
    assert (
        list(read(folder).runs["variant"].unique()) == expected
    )  # of two steps the first decides: no scale is nearer


def test_variants_are_ranked_by_a_metric(small):
    done = invoke("rank", small[0], "--metric", "ssim")
    assert done.exit_code == 0, done.output
    assert "last:50%" in done.output
    assert invoke("rank", small[0], "--metric", "lpips").exit_code == 2


def test_a_frontier_is_a_table_and_a_picture(small, tmp_path):
    done = invoke("frontier", small[0], "--metric", "ssim", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "| **cfg** | 4 |" in done.output
    assert (tmp_path / "frontier-ssim.png").stat().st_size > 10_000


def test_a_frontier_takes_its_times_from_another_study(small, tmp_path):
    done = invoke("frontier", small[0], "--metric", "ssim", "--timing", small[0], "--out", tmp_path)
    assert done.exit_code == 0, done.output


def test_a_distance_between_distributions_takes_many_images(small):
    done = invoke("distances", small[0])
    assert done.exit_code == 2
    assert "takes 512 images" in done.output


def test_a_run_compared_with_itself_passes_and_is_written(small, tmp_path):
    done = invoke(
        "compare",
        small[0],
        small[0],
        "--markdown",
        tmp_path / "c.md",
        "--json",
        tmp_path / "c.json",
    )
    assert done.exit_code == 0, done.output
    assert "figures are the same" in done.output
    assert "undecided" in (tmp_path / "c.md").read_text()  # one repeat decides nothing
    assert {"variant", "figure", "verdict"} <= set(json.loads((tmp_path / "c.json").read_text())[0])


def test_a_missing_variant_fails_a_comparison_and_another_study_cannot_compare(small, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(small[0], folder)
    runs = pd.read_parquet(folder / "runs.parquet")
    runs.loc[runs["variant"] == "unguided", "status"] = "failed"
    runs.to_parquet(folder / "runs.parquet", index=False)
    assert invoke("compare", small[0], folder).exit_code == 1
    study = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(study | {"num_steps": 3}))
    done = invoke("compare", small[0], folder)
    assert done.exit_code == 2
    assert "the studies differ in num_steps" in done.output


@pytest.fixture(scope="module")
def quick_bench(tmp_path_factory):
    """A study file of seconds, its run accepted as the first baseline; one repeat, so that no time decides anything."""
    place = tmp_path_factory.mktemp("bench")
    lines = [
        'model = "mini-sd"',
        'variants = ["cfg", "last:50%"]',
        'prompts = ["a red circle"]',
        "seeds = [0]",
    ]
    lines += [
        "num_steps = 2",
        "guidance_scale = 5.0",
        "repeats = 1",
        "threads = 1",
        'metrics = ["ssim"]',
    ]
    (place / "quick.toml").write_text("\n".join(lines))
    done = bench(place, "first", "--accept", "the first")
    assert done.exit_code == 0, done.output
    return place


def bench(place, out, *options):
    return invoke(
        "bench", place / "quick.toml", "--baselines", place / "base", "--out", place / out, *options
    )


@pytest.mark.slow
def test_a_benchmark_runs_against_its_baseline(quick_bench):
    done = bench(quick_bench, "second", "--json", quick_bench / "second.json")
    assert done.exit_code == 0, done.output
    told = pd.read_json(quick_bench / "second.json")
    assert set(told.loc[~told["figure"].str.startswith("time"), "verdict"]) == {"same"}


def test_a_benchmark_fails_where_more_is_evaluated(quick_bench):
    worse = quick_bench / "worse"
    shutil.copytree(quick_bench / "base", worse)
    baseline = next(worse.iterdir())
    runs = pd.read_parquet(baseline / "runs.parquet")
    runs.loc[runs["variant"] == "last:50%", "rows"] -= 1
    runs.to_parquet(baseline / "runs.parquet", index=False)
    done = bench(quick_bench, "third", "--baselines", worse)
    assert done.exit_code == 1, done.output
    assert "regression" in done.output


def test_a_benchmark_without_a_baseline_says_how_to_make_one(quick_bench):
    done = bench(quick_bench, "fourth", "--baselines", quick_bench / "nowhere")
    assert done.exit_code == 2
    assert "make this run one: --accept REASON" in done.output
    assert not (quick_bench / "fourth").exists()


def test_a_baselines_history_is_told_and_plotted(quick_bench, tmp_path):
    past = shutil.copytree(quick_bench / "base", tmp_path / "base")
    baseline = next(past.iterdir())
    assert invoke("compare", baseline, quick_bench / "first", "--accept", "again").exit_code == 0
    done = invoke("history", baseline, "--out", tmp_path / "past.png")
    assert done.exit_code == 0, done.output
    assert [line.split("  ")[1] for line in done.output.splitlines()[:2]] == ["the first", "again"]
    assert (tmp_path / "past.png").stat().st_size > 1000


def test_another_study_takes_a_baselines_place_only_for_a_reason(quick_bench, folder, tmp_path):
    baseline = next(shutil.copytree(quick_bench / "base", tmp_path / "base").iterdir())
    assert invoke("compare", baseline, folder).exit_code == 2
    assert invoke("compare", baseline, folder, "--accept", "another study").exit_code == 0
    assert read(baseline).study["name"] == read(folder).study["name"]


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


@pytest.mark.slow
def test_a_run_at_a_url_leaves_tables_and_pictures_there():
    url = "memory://cli/study"
    done = invoke(*QUICK, "--out", url)
    assert done.exit_code == 0, done.output
    assert f"Tables and pictures are in {url}" in done.output
    assert {"runs.parquet", "grid.png", "steps.png", "frontier.png"} <= set(Remote(url).files())
    assert len(read(url).runs) == 2 * 2
    assert invoke(*QUICK, "--out", url).exit_code == 2
    assert invoke(*QUICK, "--out", url, "--resume").exit_code == 0


def test_a_study_without_times_is_reported(small, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(small[0], folder)
    runs = pd.read_parquet(folder / "runs.parquet").assign(exclusive=False)
    runs["exclusive"] = runs["exclusive"].astype("boolean")
    runs.to_parquet(folder / "runs.parquet", index=False)
    for command in (
        ["report", folder, "--html", tmp_path / "page.html"],
        ["report", folder],
        ["rank", folder],
    ):
        done = invoke(*command, *(["--metric", "ssim"] if command[0] == "rank" else []))
        assert done.exit_code == 0, done.output
    frontier = invoke("frontier", folder, "--metric", "ssim", "--out", tmp_path)
    assert frontier.exit_code == 0, frontier.output
