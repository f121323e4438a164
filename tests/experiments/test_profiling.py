"""Profiles of tiny pipelines: whole steps add up, work is exact, and the pipeline is left alone."""

import json
import re

import pytest
import torch

import sdbench
from sdbench.analysis.modules import by, module_table
from sdbench.experiments.cost import footprint_table
from sdbench.experiments.counted_work import counted
from sdbench.experiments.profiling import profile
from sdbench.records.files import read_table
from tests import tiny


def profiled(pipe, **changes):
    settings = {"guidance_scale": 5.0, "num_steps": 4, "rounds": 2} | changes
    return profile(pipe, tiny.PROMPTS[:2], **settings)


def test_a_profile_has_both_kinds_of_steps_and_what_is_around_them(tmp_path):
    pipe = tiny.stable_diffusion()
    table = profiled(pipe, out=tmp_path / "profile")
    assert set(table["step"]) == {"guided", "unguided", "text", "decode"}
    assert {"unet", "vae", "text_encoder", "scheduler", "pipeline"} <= set(table["part"])
    assert (table["seconds"] >= 0).all()
    assert (table["plain_s"] > 0).all()
    work = table.groupby("step")["flop"].sum()
    assert work["guided"] == 2 * work["unguided"] > 0
    stored = read_table(tmp_path / "profile", "modules")
    assert stored["flop"].sum() == table["flop"].sum()
    (machine,) = json.loads((tmp_path / "profile" / "environment.json").read_text()).values()
    assert machine["peaks"]["flop_s"] == table["peak_flop_s"].iloc[0]
    assert not any(module._forward_hooks for module in pipe.unet.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 2}, "a profile takes at least 4 steps, not 2"),
        ({"rounds": 3}, "a profile takes an even number of rounds, not 3"),
        ({"rounds": 0}, "a profile takes an even number of rounds, not 0"),
        ({"guidance_scale": 1.0}, "guidance_scale must be above 1"),
    ],
)
def test_what_cannot_be_profiled_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        profiled(tiny.stable_diffusion(), **changes)


def test_a_folder_that_holds_a_profile_is_not_replaced_unasked(tmp_path):
    pipe = tiny.stable_diffusion()
    profiled(pipe, out=tmp_path)
    with pytest.raises(ValueError, match="already holds a study"):
        profiled(pipe, out=tmp_path)
    profiled(pipe, out=tmp_path, mode="overwrite")


def test_counted_work_is_that_of_the_footprint():
    table = counted("sd15", height=64, width=64, batch=1, dtype=torch.float32)
    whole = footprint_table(["sd15"], sides=[(64, 64)], batches=[1], dtype="float32")
    assert table.groupby("step")["flop"].sum().to_dict() == (
        whole.set_index("step")["flop"].to_dict()
    )
    kinds = module_table(table)
    assert kinds["guided_s"].isna().all()
    assert by(table, "kind").iloc[0]["kind"] == "convolution"


def test_it_is_public():
    assert sdbench.profile is profile
