from dataclasses import replace
from functools import cache

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, UNet2DConditionModel

from sdbench.instruments.memory import AllocatorTrace
from sdbench.models import random_weights, registry
from sdbench.models.architectures import ARCHITECTURES
from sdbench.models.random_weights import build, fill, has_random_weights, needed_bytes
from sdbench.models.stored_weights import weights_bytes

CPU = torch.device("cpu")
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CLIP |= {"projection_dim": 16, "vocab_size": 1000}
UNET = {"norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 2}
DIT = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
SMALL = {  # what makes a class small
    "AutoencoderKL": {
        "block_out_channels": (4, 4, 4, 4),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "CLIPTextModel": CLIP,
    "CLIPTextModelWithProjection": CLIP,
    "T5EncoderModel": {
        "d_model": 32,
        "d_ff": 16,
        "d_kv": 8,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": 1000,
    },
    "SD3Transformer2DModel": DIT
    | {"caption_projection_dim": 16, "joint_attention_dim": 32, "pooled_projection_dim": 32}
    | {"pos_embed_max_size": 12, "sample_size": 16, "dual_attention_layers": (0,)},
    "FluxTransformer2DModel": DIT
    | {
        "num_single_layers": 1,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (2, 2, 4),
    },
    "PixArtTransformer2DModel": DIT | {"cross_attention_dim": 16, "caption_channels": 32},
}
SMALL_UNETS = {
    "sd15": UNET | {"block_out_channels": (4, 8, 8, 8), "cross_attention_dim": 16},
    "sd21": UNET | {"block_out_channels": (4, 8, 8, 8), "cross_attention_dim": 16},
    "sdxl": UNET
    | {
        "block_out_channels": (4, 8, 8),
        "cross_attention_dim": 32,
        "transformer_layers_per_block": (1, 1, 2),
    }
    | {"projection_class_embeddings_input_dim": 6 * 256 + 16},
}


def shrunk(name):
    """An architecture whose networks have the same blocks, but few and narrow."""
    small = SMALL | {"UNet2DConditionModel": SMALL_UNETS.get(name)}
    parts = ARCHITECTURES[name].networks.items()
    networks = {
        key: replace(part, config={**part.config, **small[part.kind]}) for key, part in parts
    }
    return replace(ARCHITECTURES[name], networks=networks)


def built(name, dtype=torch.float32, **settings):
    pipe = build(shrunk(name), dtype=dtype, device=CPU, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def whole(name):
    """One pipeline of an architecture, for tests that only look at it."""
    return built(name)


def images(pipe, name, prompt="a lighthouse at dusk", scale=5.0):
    call = {"guidance_scale": scale}
    if name == "flux":
        call = {"true_cfg_scale": scale, "negative_prompt": ""}
    if name == "pixart-sigma":
        call["use_resolution_binning"] = False
    generator = torch.Generator().manual_seed(0)
    return pipe(
        prompt,
        height=64,
        width=64,
        num_inference_steps=2,
        output_type="pt",
        generator=generator,
        **call,
    ).images


FLOAT16 = torch.float16
BFLOAT16 = torch.bfloat16
halves = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("sd15", FLOAT16),
        ("sd15", BFLOAT16),
        ("sd35-medium", BFLOAT16),
        ("pixart-sigma", BFLOAT16),
        pytest.param("sd35-medium", FLOAT16, marks=pytest.mark.slow),
        pytest.param("pixart-sigma", FLOAT16, marks=pytest.mark.slow),
    ],
    ids=str,
)
"""Both formats on one architecture, one of them on the others."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prompt_becomes_an_image_that_depends_on_it_and_on_guidance(name):
    pipe = whole(name)
    image = images(pipe, name)
    assert image.shape == (1, 3, 64, 64)
    assert image.isfinite().all()
    assert not torch.allclose(image, images(pipe, name, prompt="a green car"))
    assert not torch.allclose(image, images(pipe, name, scale=2.0))


@halves
def test_half_precision_runs(name, dtype):
    assert images(built(name, dtype), name).isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_buffers_are_those_of_a_network_built_as_usual(name):
    pipe = whole(name)
    for key, part in shrunk(name).networks.items():
        usual, ours = part.make(), getattr(pipe, key)
        assert usual.state_dict().keys() == ours.state_dict().keys()
        buffers = dict(ours.named_buffers())
        assert buffers.keys() == dict(usual.named_buffers()).keys()
        assert all(torch.equal(buffer, buffers[path]) for path, buffer in usual.named_buffers())


@halves
def test_dtypes_are_those_of_an_opened_checkpoint(tmp_path, name, dtype):
    pipe = built(name, dtype)
    for key, part in shrunk(name).networks.items():
        part.make().save_pretrained(tmp_path / key)
        ours = getattr(pipe, key)
        opened = type(ours).from_pretrained(tmp_path / key, dtype=dtype)
        for tensors in ("named_parameters", "named_buffers"):
            expected = {path: tensor.dtype for path, tensor in getattr(opened, tensors)()}
            assert {path: tensor.dtype for path, tensor in getattr(ours, tensors)()} == expected


def test_networks_do_not_drop_out():
    pipe = whole("sd35-medium")
    assert not any(
        module.training
        for key in shrunk("sd35-medium").networks
        for module in getattr(pipe, key).modules()
    )


def test_tied_parameters_stay_tied():
    encoder = whole("pixart-sigma").text_encoder
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


def test_weights_depend_on_the_seed_alone():
    first, again, other = (built("sd15", seed=seed).unet.conv_in.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_activations_keep_their_scale():
    with init_empty_weights():
        layer = torch.nn.Linear(2000, 1000)
    fill(layer, torch.float32, CPU, torch.Generator().manual_seed(0))
    outputs = layer(torch.randn(8, 2000, generator=torch.Generator().manual_seed(1)))
    assert outputs.std().item() == pytest.approx(1, abs=0.05)


def test_tokenizers_take_as_much_as_the_published_ones():
    pipe = whole("sd35-medium")
    assert [
        getattr(pipe, name).model_max_length for name in ("tokenizer", "tokenizer_2", "tokenizer_3")
    ] == [
        77,
        77,
        512,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_filling_needs_no_second_copy(dtype):
    with init_empty_weights():
        network = torch.nn.Sequential(*(torch.nn.Linear(500, 500, bias=False) for _ in range(4)))
    with AllocatorTrace() as trace:
        fill(network, dtype, CPU, torch.Generator().manual_seed(0))
    one = 500 * 500 * dtype.itemsize
    assert trace.live_bytes == 4 * one
    assert trace.peak_bytes <= 5 * one


def test_building_needs_no_more_than_the_weights_and_one_parameter():
    with AllocatorTrace() as trace:
        pipe = built("sd15", torch.bfloat16)
    largest = max(parameter.nbytes for parameter in pipe.text_encoder.parameters())
    assert weights_bytes(pipe) <= trace.peak_bytes <= weights_bytes(pipe) + largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["sdxl", "sd35-medium", "pixart-sigma"])
def test_the_bytes_needed_are_known_before_building(name, dtype):
    assert needed_bytes(shrunk(name), dtype) == weights_bytes(built(name, dtype))


@pytest.mark.parametrize(
    ("free_gb", "hint"),
    [
        (40, "bfloat16 needs 33.7 GB and float16 needs 35.8 GB"),
        pytest.param(35, "bfloat16 needs 33.7 GB$", marks=pytest.mark.slow),
    ],
)
def test_too_little_memory_is_refused_before_it_is_taken(monkeypatch, free_gb, hint):
    monkeypatch.setattr(random_weights, "free_bytes", lambda device: free_gb * 10**9)
    with pytest.raises(
        ValueError,
        match=f"flux in float32 needs 67.5 GB, but the cpu has {free_gb}.0 GB free; {hint}",
    ):
        registry.load("flux", random_weights=True, device="cpu")


def test_a_dtype_that_would_not_fit_either_is_no_hint(monkeypatch):
    monkeypatch.setattr(random_weights, "free_bytes", lambda device: 10**9)
    with pytest.raises(
        ValueError, match=r"sd15 in float16 needs 2\.1 GB, .*; no other dtype fits either"
    ):
        build(ARCHITECTURES["sd15"], dtype=torch.float16, device=CPU)


def test_free_memory_is_what_the_system_calls_available(monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  2000 kB\nMemFree:  300 kB\nMemAvailable:    1000 kB\n")
    monkeypatch.setattr(random_weights, "MEMINFO", meminfo)
    assert random_weights.free_bytes(CPU) == 1_024_000


def test_free_memory_is_all_memory_where_the_system_does_not_say(monkeypatch, tmp_path):
    available = random_weights.free_bytes(CPU)
    monkeypatch.setattr(random_weights, "MEMINFO", tmp_path / "none")
    assert random_weights.free_bytes(CPU) >= available


def test_free_memory_of_a_gpu_is_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50, 90))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2)
    assert random_weights.free_bytes(torch.device("cuda")) == 57


def test_random_weights_are_seen(tmp_path):
    pipe = built("sd15")
    assert has_random_weights(pipe)
    assert has_random_weights(built("flux"))
    assert has_random_weights(
        StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    )
    pipe.unet.save_pretrained(tmp_path)
    pipe.unet = UNet2DConditionModel.from_pretrained(tmp_path)
    assert has_random_weights(pipe)


def test_a_trained_pipeline_has_no_random_weights():
    assert not has_random_weights(StableDiffusionPipeline.from_pretrained(registry.MINI_SD))
    assert not has_random_weights(object())


def test_loading_an_architecture_gives_a_marked_pipeline(monkeypatch):
    monkeypatch.setitem(registry.ARCHITECTURES, "sd15", shrunk("sd15"))
    monkeypatch.setattr(registry, "lay_out", lambda pipe: None)  # 512 x 512 pixels take a while
    pipe = registry.load("sd15", random_weights=True, dtype="bfloat16", device="cpu")
    assert has_random_weights(pipe)
    assert pipe.unet.dtype == torch.bfloat16
    assert pipe.safety_checker is None
    assert pipe._progress_bar_config == {"disable": True}


def test_an_architecture_without_weights_names_both_ways_out():
    with pytest.raises(
        ValueError, match=r"random_weights=True .* 'stable-diffusion-v1-5/stable-diffusion-v1-5'"
    ):
        registry.load("sd15")


@pytest.mark.parametrize(
    "model", ["mini-sd", "sd99", object()], ids=["trained", "unknown", "pipeline"]
)
def test_random_weights_need_an_architecture(model):
    with pytest.raises(
        ValueError, match="random_weights needs an architecture: sd15, sd21, sdxl, "
    ):
        registry.load(model, random_weights=True)


def test_an_unknown_name_lists_the_architectures():
    with pytest.raises(
        ValueError,
        match="with random_weights=True: sd15, sd21, sdxl, sd35-medium, flux, pixart-sigma",
    ):
        registry.load("sd99")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:99", "float32 does not run on device 'cuda:99': "),
        ("telephone", "unknown device 'telephone': "),
    ],
)
def test_a_device_that_is_missing_is_refused(device, message):
    with pytest.raises(ValueError, match=message):
        registry.load("mini-sd", device=device)


def test_a_dtype_that_the_device_lacks_is_refused(monkeypatch):
    def lacking(*args):
        raise NotImplementedError("\"slow_conv2d\" not implemented for 'Half'\nand a long trace")

    monkeypatch.setattr(torch.nn.functional, "conv2d", lacking)
    with pytest.raises(
        ValueError, match=r"float16 does not run on device 'cpu': .* not implemented for 'Half'$"
    ):
        registry.load("mini-sd", dtype="float16", device="cpu")
