"""Students on pipelines that somebody compiled or fused: the same images, or what to undo."""

import pytest
import torch

from sdbench.models.registry import MODELS
from sdbench.variants.adapters import applied
from sdbench.variants.registry import parse
from tests import tiny
from tests.variants.students import FILES, SCALE, assert_same, saved, state

WRAPPED = {
    "compiled": lambda pipe: setattr(pipe, "unet", torch.compile(pipe.unet, backend="eager")),
    "compiled in place": lambda pipe: pipe.unet.compile(backend="eager"),
    "fused and unfused": lambda pipe: (
        pipe.fuse_qkv_projections(),
        pipe.unfuse_qkv_projections(),
    ),
}
REFUSED = {
    "fused projections": (
        lambda pipe: pipe.fuse_qkv_projections(),
        "call `unfuse_qkv_projections\\(\\)` first",
    ),
    "compiled in part": (
        lambda pipe: setattr(
            pipe.unet, "mid_block", torch.compile(pipe.unet.mid_block, backend="eager")
        ),
        "has another module around its mid_block",
    ),
}


def run(pipe, text):
    with applied(pipe, parse(text), guidance_scale=SCALE):
        return tiny.run(pipe)


@pytest.mark.parametrize("way", WRAPPED)
@pytest.mark.parametrize("text", ["lora:{}", "full:{}", "last:50%+lora:{}"])
def test_a_student_runs_as_on_the_plain_network_and_comes_off(tmp_path, way, text):
    saved(tmp_path, method="full" if text.startswith("full") else "lora")
    text = text.format(tmp_path)
    pipe = tiny.stable_diffusion()
    expected, unguided = run(pipe, text), run(pipe, "unguided")
    assert not torch.equal(expected, unguided)

    pipe = tiny.stable_diffusion()
    WRAPPED[way](pipe)
    before, network = state(pipe), pipe.unet
    for _ in range(2):
        assert torch.equal(run(pipe, text), expected)
        assert_same(state(pipe), before)
    assert pipe.unet is network


def test_a_student_of_many_scales_runs_on_a_compiled_network(tmp_path):
    saved(tmp_path, w_range=(2.0, 10.0))
    expected = run(tiny.stable_diffusion(), f"lora:{tmp_path}")
    pipe = tiny.stable_diffusion()
    WRAPPED["compiled"](pipe)
    assert torch.equal(run(pipe, f"lora:{tmp_path}"), expected)


@pytest.mark.parametrize("way", REFUSED)
@pytest.mark.parametrize("method", FILES)
def test_what_a_student_would_not_reach_is_refused_with_what_to_undo(tmp_path, way, method):
    saved(tmp_path, method=method)
    pipe = tiny.stable_diffusion()
    wrap, message = REFUSED[way]
    wrap(pipe)
    before = state(pipe)
    with pytest.raises(ValueError, match=message):
        run(pipe, f"{method}:{tmp_path}")
    assert_same(state(pipe), before)


def test_the_shipped_card_knows_the_compiled_model():
    from sdbench.models.registry import load
    from sdbench.models.students import LORA_FILE, check_base
    from sdbench.variants.student_weights import weights_file

    pipe = load("mini-sd", device="cpu")
    WRAPPED["compiled"](pipe)
    file = weights_file(MODELS["mini-sd"].adapter, of_lora=True)
    assert file.name == LORA_FILE
    check_base(pipe.unet, file)
