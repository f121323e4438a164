import numpy as np
import pandas as pd
import pytest
import torch

import sdbench
from sdbench.analysis.sensitivity import evaluations
from sdbench.experiments.branch_choice import BranchChoice, branches_of
from sdbench.experiments.sensitivity import sweep
from sdbench.records.store import read_sweep
from sdbench.study.generation import Generation
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from tests import tiny

GENERATION = Generation(
    model="tiny", prompts=tiny.PROMPTS, seeds=[0, 1], num_steps=4, guidance_scale=7.5
)


def psnr_sweep(pipe, choice, out=None, **how):
    return sweep(pipe, GENERATION, choice, out, metrics=["psnr"], **how)


@pytest.mark.parametrize(
    ("kind", "settings", "masks"),
    [
        ("single", {}, ["0111", "1011", "1101", "1110"]),
        ("single", {"stride": 2}, ["0111", "1101"]),
        ("window", {"length": 2}, ["0011", "1001", "1100"]),
        ("last", {}, ["1110", "1100", "1000", "0000"]),
        ("first", {}, ["0111", "0011", "0001", "0000"]),
        ("first", {"stride": 3}, ["0001"]),
        ("interval", {"stride": 2}, ["1100", "0011"]),
    ],
)
def test_every_kind_has_its_masks(kind, settings, masks):
    assert [branch.text for branch in branches_of(kind, 4, **settings)] == masks


def test_start_and_length_name_the_run_that_a_kind_moves():
    window = branches_of("window", 8)[3]
    assert (window.start, window.length, window.text) == (3, 2, "11100111")
    guided = branches_of("interval", 8, stride=4)[0]
    assert (guided.start, guided.length, guided.text) == (0, 4, "11110000")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (BranchChoice("middle"), "unknown kind 'middle'; there are: single, window"),
        (BranchChoice("last", length=2), "length is the window's"),
        (BranchChoice("window", length=5), "length must be between 1 and 4"),
        (BranchChoice("single", stride=0), "stride must be between 1 and 4"),
        (BranchChoice(masks=("11",)), "has 2 steps but the loop runs 4"),
        (BranchChoice(masks=("11x1",)), "only 0 and 1"),
        (BranchChoice(masks=("1111",)), "that is the baseline"),
        (BranchChoice(masks=("1101", "1101")), "a mask is there twice"),
        (BranchChoice(max_rows=0), "max_rows must be at least 1"),
    ],
)
def test_a_choice_that_cannot_run_is_refused_before_the_folder_is_made(tmp_path, choice, message):
    with pytest.raises(ValueError, match=message):
        psnr_sweep(tiny.stable_diffusion(), choice, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_little_memory_for_one_row_says_how_much_it_needs(monkeypatch):
    monkeypatch.setattr("sdbench.experiments.branching.free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match=r"one denoiser row needs 0\.0 GB"):
        psnr_sweep(tiny.stable_diffusion(), BranchChoice())


def test_every_row_is_what_its_mask_gives_alone():
    """PSNR against the guided image, from one pipeline call per mask and pair."""
    pipe = tiny.stable_diffusion()
    found = sdbench.sensitivity(
        pipe,
        tiny.PROMPTS,
        [0, 1],
        num_steps=4,
        guidance_scale=7.5,
        kind="last",
        metrics=["psnr"],
        max_rows=3,
    )
    assert len(found) == 4 * 5

    def image(row):
        call = {
            "prompt": row["prompt"],
            "generator": torch.Generator().manual_seed(row["seed"]),
            "output_type": "pt",
        }
        with guided_by(pipe, GuidanceSchedule.from_mask(letter == "1" for letter in row["mask"])):
            images = pipe(**call, num_inference_steps=4, guidance_scale=7.5).images
        return (images.clamp(0, 1) * 255).round() / 255

    for _, row in found[found["kind"] == "last"].iloc[::3].iterrows():
        alone = sdbench.score("psnr", image(row), image({**row, "mask": "1111"}))
        assert row["psnr"] == pytest.approx(float(alone), abs=0.02)


@pytest.mark.parametrize(
    ("kind", "branched", "naive"), [("single", 2550, 5050), ("last", 1325, 3825)]
)
def test_branches_share_what_they_can(kind, branched, naive):
    """Rows per pair at 50 steps; the rows are counted at the denoiser, too."""
    pipe = tiny.stable_diffusion()
    with tiny.counted_rows(pipe) as counted:
        found = sdbench.sensitivity(
            pipe,
            tiny.PROMPTS[:1],
            [0],
            num_steps=50,
            guidance_scale=7.5,
            kind=kind,
            metrics=["psnr"],
            max_rows=64,
        )
    before = sum(counted) - branched  # of the checks before the first image
    assert evaluations(found) == (branched, naive)
    assert 0 < before <= 7  # two guided steps, by which it learns how the pipeline guides


def test_rows_stay_within_their_bound_however_many_masks_there_are():
    pipe = tiny.stable_diffusion()
    for kind in ("single", "interval"):
        with tiny.counted_rows(pipe) as counted:
            sdbench.sensitivity(
                pipe,
                tiny.PROMPTS,
                [0],
                num_steps=5,
                guidance_scale=7.5,
                kind=kind,
                metrics=["psnr"],
                max_rows=3,
            )
        assert max(counted) == 3


def test_a_loop_of_another_length_than_its_steps_is_swept_whole():
    from diffusers import HeunDiscreteScheduler

    found = sdbench.sensitivity(
        tiny.stable_diffusion(HeunDiscreteScheduler),
        tiny.PROMPTS,
        [0],
        num_steps=4,
        guidance_scale=7.5,
        metrics=["psnr"],
    )
    assert set(found["mask"].str.len()) == {7}


def test_growth_starts_where_the_branch_leaves_and_the_trunk_has_none(tmp_path):
    found = psnr_sweep(tiny.stable_diffusion(), BranchChoice("single", growth=True), tmp_path)
    growth = found.growth.set_index(["mask", "step"])["distance"].astype(float)
    assert (growth.loc["1111"] == 0).all()
    assert (growth.loc["1011"].loc[[0, 1]] == 0).all()
    assert (growth.loc["1011"].loc[[2, 3, 4]] > 0).all()
    assert (growth.loc["1110"].loc[[3]] == 0).all()
    assert (growth.loc["1110"].loc[[4]] > 0).all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that nothing interrupted."""
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    return psnr_sweep(tiny.stable_diffusion(), BranchChoice(max_rows=4), folder).sensitivity


@pytest.mark.parametrize("rows", [4, 16])
def test_a_killed_sweep_goes_on_without_repeating_what_was_finished(
    tmp_path, monkeypatch, whole, rows
):
    pipe = tiny.stable_diffusion()
    calls, plain = [], type(pipe).__call__

    def counted(self, *args, **kwargs):
        if kwargs["output_type"] == "pt":
            calls.append(len(kwargs["prompt"]))
            if len(calls) == 4 and kill:
                raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "__call__", counted)
    kill = True
    with pytest.raises(KeyboardInterrupt):
        psnr_sweep(pipe, BranchChoice(max_rows=4), tmp_path / "killed")
    assert (
        len(read_sweep(tmp_path / "killed").sensitivity) == 12
    )  # the trunk's call and two of four
    kill = False
    calls.clear()
    resumed = psnr_sweep(
        pipe, BranchChoice(max_rows=rows), tmp_path / "killed", mode="resume"
    ).sensitivity
    assert sum(calls) == 4 + 8  # the trunk again, and what was missing
    key = ["mask", "prompt_id", "seed"]
    found, expected = (
        t.drop(columns="unit").sort_values(key, ignore_index=True) for t in (resumed, whole)
    )
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["likeness"]}, "unknown metric 'likeness'"),
        ({"random_weights": True, "metrics": ["psnr"]}, "images of random weights have no content"),
    ],
)
def test_what_a_sweep_cannot_do_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sdbench.sensitivity(
            tiny.stable_diffusion(),
            tiny.PROMPTS,
            [0],
            num_steps=4,
            guidance_scale=7.5,
            **{"metrics": ["psnr"], **changes},
        )


def test_a_sweep_has_no_choice_of_execution():
    with pytest.raises(TypeError, match="execution"):
        sdbench.sensitivity(
            tiny.stable_diffusion(),
            tiny.PROMPTS,
            [0],
            num_steps=4,
            guidance_scale=7.5,
            execution="compile",
        )


def test_the_curve_is_the_mean_over_pairs_with_alignment_as_a_difference():
    from sdbench.analysis.sensitivity import sensitivity_curve

    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt_id": f"{p}",
            "seed": 0,
            "kind": kind,
            "start": start,
            "length": length,
            "mask": mask,
            "nfe": 4,
        }
        | {"lpips": value, "alignment": 0.9 - value}
        for p in range(64)
        for kind, start, length, mask, value in (
            ("baseline", None, None, "11", 0.0),
            ("single", 0, 1, "01", 0.4 + 0.1 * rng.random()),
            ("single", 1, 1, "10", 0.1 + 0.1 * rng.random()),
        )
    ]
    table = pd.DataFrame(rows)
    curve = sensitivity_curve(table, "lpips")
    assert curve["mask"].tolist() == ["01", "10"]
    means = table[table["kind"] == "single"].groupby("mask")["lpips"].mean()
    assert curve["lpips"].tolist() == pytest.approx([means["01"], means["10"]])
    assert ((curve["lpips_lo"] < curve["lpips"]) & (curve["lpips"] < curve["lpips_hi"])).all()
    assert curve["lpips_changed"].tolist() == [1, 1]
    assert (curve["lpips_median_lo"] < curve["lpips_median"]).all()
    assert sensitivity_curve(table, "alignment")["alignment"].tolist() == pytest.approx(
        [-means["01"], -means["10"]]
    )
    with pytest.raises(ValueError, match="no values of 'ssim'"):
        sensitivity_curve(table, "ssim")


def test_images_are_decoded_as_many_at_a_time_as_a_batch_has():
    pipe, sizes = tiny.stable_diffusion(), []
    decoder = pipe.vae.decoder
    decoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    settings = {
        "num_steps": 4,
        "guidance_scale": 7.5,
        "metrics": ["psnr"],
        "max_rows": 8,
        "batch": 3,
    }
    sdbench.sensitivity(pipe, tiny.PROMPTS, [0, 1], kind="last", **settings)
    assert max(sizes) == 3
    assert sum(sizes) == 4 * 5
    assert "decode" not in vars(pipe.vae)
