"""Sweeps and plans on a pipeline that makes videos."""

import json

import numpy as np
import pytest
import torch

from sdbench.experiments.branch_choice import BranchChoice
from sdbench.experiments.planning import Target, plan
from sdbench.experiments.sensitivity import sweep
from sdbench.instruments.quality import score
from sdbench.records.columns import VIDEO
from sdbench.records.schema import columns
from sdbench.study.generation import Generation
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from tests import alexnet, tiny
from tests.families import decoding, videos

SIZE = {"height": decoding.SIDE, "width": decoding.SIDE}


def generation(**changes):
    given = {"model": "tiny", "prompts": tiny.PROMPTS, "seeds": [0], "num_steps": 4, **SIZE}
    given |= {"guidance_scale": 5.0, "arguments": decoding.ARGUMENTS}
    return Generation(**given | changes)


@pytest.fixture(scope="module", autouse=True)
def lpips():
    with alexnet.made_up():
        yield


@pytest.fixture(scope="module")
def pipe():
    return decoding.wan()


@pytest.fixture(scope="module")
def swept(pipe):
    choice = BranchChoice("last", growth=True, max_rows=4)
    return sweep(pipe, generation(), choice, metrics=["lpips", "ssim"])


def test_every_mask_has_mean_worst_and_flicker(swept):
    table = swept.sensitivity
    assert len(table) == 2 * 5
    assert set(table) - set(columns("sensitivity")) == {"lpips_worst", "ssim_worst", "flicker"}
    assert set(table) - set(columns("sensitivity")) <= set(VIDEO)
    base = table[table["kind"] == "baseline"]
    assert (base["lpips"] == 0).all()
    assert (base["lpips_worst"] == 0).all()
    others = table[table["kind"] == "last"]
    assert (others["lpips_worst"] >= others["lpips"]).all()
    assert (table["flicker"] > 0).all()


def test_a_row_is_what_its_mask_gives_alone(swept, pipe):
    row = swept.sensitivity.query("mask == '1100'").iloc[0]

    def video(mask):
        call = SIZE | decoding.ARGUMENTS | {"num_inference_steps": 4, "guidance_scale": 5.0}
        schedule = GuidanceSchedule.from_mask(letter == "1" for letter in mask)
        with guided_by(pipe, schedule):
            generator = torch.Generator("cpu").manual_seed(0)
            made = pipe(prompt=row["prompt"], generator=generator, output_type="pt", **call)
        return (made.frames[0] * 255).round() / 255

    values = score("ssim", video("1100"), video("1111"))
    assert row["ssim"] == pytest.approx(float(values.mean()), abs=1e-3)
    assert row["ssim_worst"] == pytest.approx(float(values.min()), abs=1e-3)


def test_latents_grow_apart_step_by_step(swept):
    growth = swept.growth.query("mask == '1000'").groupby("step")["distance"].mean()
    assert growth.index.tolist() == [0, 1, 2, 3, 4]
    assert growth[1] == 0
    assert growth[4] > growth[2] > 0


def test_a_sweep_follows_pipelines_whose_scheduler_gets_frames_as_rows():
    pipe = videos.text_to_video()
    asked = generation(arguments={"num_frames": videos.FRAMES}, prompts=tiny.PROMPTS[:1])
    found = sweep(pipe, asked, BranchChoice("single", growth=True), metrics=["ssim"])
    assert len(found.sensitivity) == 5
    distances = found.growth.query("step == 4 and kind == 'single'")["distance"]
    assert len(distances) == 4
    assert np.isfinite(distances).all()


def test_a_plan_is_searched_judged_and_timed(pipe, tmp_path):
    tuning = generation(prompts=tiny.PROMPTS[:1])
    held_out = generation(prompts=tiny.PROMPTS[1:], seeds=[7])
    made = plan(pipe, tuning, held_out, Target((2,)), tmp_path / "out", metric="ssim", rounds=1)
    assert {"ssim", "ssim_worst"} <= set(made.judged)
    assert "cfg" in set(made.judged["variant"])
    assert made.judged[["ssim", "ssim_worst"]].notna().all(axis=None)
    content = json.loads((tmp_path / "out" / "plan-2.json").read_text())
    assert content["mask"].count("0") == 2
    assert made.timing.study["output"] == "video"
    assert set(made.timing.runs["status"]) == {"ok"}
