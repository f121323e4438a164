"""A student is put into a pipeline and taken out, and what is none is refused."""

import json
import logging

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file

from sdbench.distill.student import lora_student
from sdbench.models.students import CARD_FILE, DENOISER_FILE, LORA_FILE
from sdbench.variants.grammar import parse
from sdbench.variants.student_weights import student_in
from tests import tiny
from tests.variants.students import FILES, SCALE, assert_same, refused, saved, state


def without_a_factor(file):
    weights = load_file(file)
    del weights[next(name for name in weights if "lora_B" in name)]
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_student_is_put_in_and_the_base_comes_back_bitwise(tmp_path, method):
    student, pipe = saved(tmp_path, method=method), tiny.stable_diffusion()
    before, plain = state(pipe), tiny.run(pipe)
    modules = [type(module) for module in pipe.unet.modules()]
    with student.in_place(SCALE):
        expected = tiny.run(student.pipe)
    with student_in(pipe, tmp_path / FILES[method], guidance_scale=SCALE):
        assert [
            type(module) for module in pipe.unet.modules()
        ] == modules  # a step costs what it costs without
        found = tiny.run(pipe)
    assert_same(state(pipe), before)
    with (
        pytest.raises(ZeroDivisionError),
        student_in(pipe, tmp_path / FILES[method], guidance_scale=SCALE),
    ):
        raise ZeroDivisionError
    tiny.assert_same_latents(found, expected, tolerance=1e-4)
    assert float((found - plain).abs().max()) > 1e-2
    assert_same(state(pipe), before)
    assert torch.equal(tiny.run(pipe), plain)


def test_stock_diffusers_loads_what_is_saved(tmp_path):
    saved(tmp_path)
    ours, stock = tiny.stable_diffusion(), tiny.stable_diffusion()
    with student_in(ours, tmp_path / LORA_FILE, guidance_scale=SCALE):
        expected = tiny.run(ours)
    stock.load_lora_weights(tmp_path)
    tiny.assert_same_latents(tiny.run(stock), expected, tolerance=1e-4)


def test_a_new_adapter_changes_nothing(tmp_path):
    pipe = tiny.stable_diffusion()
    plain = tiny.run(pipe)
    lora_student(pipe, rank=2, alpha=2, targets=("attention", "feed-forward")).save(tmp_path)
    assert torch.equal(tiny.run(pipe), plain)
    other = tiny.stable_diffusion()
    with student_in(other, tmp_path / LORA_FILE, guidance_scale=SCALE):
        assert torch.equal(tiny.run(other), plain)


def test_putting_a_student_in_warns_of_nothing(tmp_path):
    saved(tmp_path)
    heard, handler = [], logging.Handler(logging.WARNING)
    handler.emit = heard.append
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_warning()
    diffusers_logging.add_handler(handler)
    try:
        tiny.stable_diffusion().load_lora_weights(tmp_path)
        assert heard.pop().getMessage().startswith("No LoRA keys")  # what stock diffusers says
        heard.clear()
        with student_in(tiny.stable_diffusion(), tmp_path / LORA_FILE, guidance_scale=SCALE):
            pass
        assert heard == []
    finally:
        diffusers_logging.remove_handler(handler)
        diffusers_logging.set_verbosity(before)


def test_a_student_of_another_scale_or_base_is_refused(tmp_path):
    saved(tmp_path)
    pipe = tiny.stable_diffusion()
    with (
        pytest.raises(ValueError, match=r"made for a guidance scale of 7\.5, not 3"),
        student_in(pipe, tmp_path / LORA_FILE, guidance_scale=3.0),
    ):
        pass
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.2)
    with (
        pytest.raises(ValueError, match="made for another base"),
        student_in(pipe, tmp_path / LORA_FILE, guidance_scale=SCALE),
    ):
        pass
    xl = tiny.stable_diffusion_xl()
    with (
        pytest.raises(ValueError, match="made for another base"),
        student_in(xl, tmp_path / LORA_FILE, guidance_scale=SCALE),
    ):
        pass


def test_half_precision_is_still_the_same_base(tmp_path):
    saved(tmp_path)
    pipe = tiny.stable_diffusion()
    pipe.to(torch.bfloat16)
    with student_in(pipe, tmp_path / LORA_FILE, guidance_scale=SCALE):
        pass


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / LORA_FILE).unlink(), "is no adapter for StableDiffusionPipeline"),
        (
            lambda folder: (folder / LORA_FILE).write_bytes(b"nothing"),
            "is no adapter for StableDiffusionPipeline",
        ),
        (
            lambda folder: without_a_factor(folder / LORA_FILE),
            "it holds only one of a layer's two factors",
        ),
        (lambda folder: (folder / CARD_FILE).write_text("["), "is not readable JSON"),
    ],
    ids=["missing", "broken", "half", "card"],
)
def test_what_is_no_student_is_named(tmp_path, spoil, message):
    saved(tmp_path)
    spoil(tmp_path)
    pipe = tiny.stable_diffusion()
    before = state(pipe)
    refused(pipe, tmp_path, message)
    assert_same(state(pipe), before)


def test_a_pipeline_with_adapters_of_its_own_is_refused(tmp_path):
    saved(tmp_path)
    pipe = tiny.stable_diffusion()
    pipe.load_lora_weights(tmp_path)
    with (
        pytest.raises(ValueError, match="already has adapters"),
        student_in(pipe, tmp_path / LORA_FILE, guidance_scale=SCALE),
    ):
        pass
    assert pipe.get_list_adapters()


LOADED = "already has adapters loaded: 'default_0', "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda pipe: None,
            LOADED + r"not fused: unload_lora_weights\(\) takes them off$",
        ),
        (lambda pipe: pipe.disable_lora(), LOADED + "not fused"),
        (
            lambda pipe: pipe.fuse_lora(),
            LOADED + r"fused, and still loaded: unload_lora_weights\(\) takes them off and leaves",
        ),
        (lambda pipe: (pipe.fuse_lora(), pipe.unfuse_lora()), LOADED + "not fused"),
    ],
    ids=["loaded", "disabled", "fused", "unfused"],
)
def test_adapters_of_its_own_are_refused_by_their_state(tmp_path, change, message):
    saved(tmp_path)
    pipe = tiny.stable_diffusion()
    pipe.load_lora_weights(tmp_path)
    change(pipe)
    refused(pipe, tmp_path, message)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_one_fused_adapter_of_two_is_named(tmp_path):
    saved(tmp_path)
    pipe = tiny.stable_diffusion()
    for name in ("first", "second"):
        pipe.load_lora_weights(tmp_path, adapter_name=name)
    pipe.fuse_lora(adapter_names=["second"])
    refused(pipe, tmp_path, "loaded: 'first', 'second', of which only 'second' is fused: unload")


def test_a_fused_adapter_that_is_unloaded_stays_in_the_weights_and_is_no_obstacle(tmp_path):
    saved(tmp_path, card=False)
    pipe = tiny.stable_diffusion()
    plain = state(pipe)
    pipe.load_lora_weights(tmp_path)
    pipe.fuse_lora()
    pipe.unload_lora_weights()

    fused = state(pipe)
    assert any(not torch.equal(fused[name], weight) for name, weight in plain.items())
    with student_in(pipe, tmp_path / LORA_FILE, guidance_scale=SCALE):
        pass
    assert_same(state(pipe), fused)


def test_a_lack_of_memory_is_no_misfit_of_a_whole_denoiser(tmp_path, monkeypatch):
    saved(tmp_path, method="full")
    pipe = tiny.stable_diffusion()

    def fails(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipe.unet, "load_state_dict", fails)
    with (
        pytest.raises(torch.OutOfMemoryError),
        student_in(pipe, tmp_path / DENOISER_FILE, guidance_scale=SCALE),
    ):
        pass


@pytest.mark.parametrize("variant", ["lora", "full"])
def test_a_path_that_is_not_there_is_called_so(tmp_path, variant):
    with pytest.raises(ValueError, match=r"there is no file or folder '.*none'"):
        parse(f"{variant}:{tmp_path / 'none'}")


def test_a_file_is_no_folder_of_a_whole_denoiser(tmp_path):
    saved(tmp_path, method="full")
    with pytest.raises(ValueError, match="is a file: give the folder with the whole denoiser"):
        parse(f"full:{tmp_path / DENOISER_FILE}")


def test_the_alpha_is_in_the_saved_weights(tmp_path):
    plain, scaled = saved(tmp_path / "a", alpha=2), saved(tmp_path / "b", alpha=4)
    a, b = (load_file(tmp_path / name / LORA_FILE) for name in "ab")
    assert json.dumps(sorted(a)) == json.dumps(sorted(b))
    assert plain.alpha == 1.0
    assert scaled.alpha == 2.0
    for name, weight in a.items():
        torch.testing.assert_close(b[name], weight * (2.0 if ".lora_B." in name else 1.0))
