import inspect
import re
from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import diffusers
import pytest
import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch._subclasses.fake_tensor import FakeTensorMode

from sdbench.instruments.cost import denoiser_flop
from sdbench.instruments.denoiser_arguments import arguments
from sdbench.instruments.footprint import LiveBytes, footprint, meta_denoiser
from sdbench.instruments.memory import AllocatorTrace
from sdbench.models.architectures import ARCHITECTURES
from sdbench.models.mini_sd import networks
from tests import tiny
from tests.families import concatenated


def channels_last():
    return networks.denoiser().to(memory_format=torch.channels_last)


def sdxl():
    return UNet2DConditionModel(
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=64,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )


HEADS = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 2}


def sd3():
    return SD3Transformer2DModel(
        **HEADS,
        sample_size=32,
        joint_attention_dim=64,
        caption_projection_dim=128,
        pooled_projection_dim=64,
        pos_embed_max_size=32,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def flux():
    return FluxTransformer2DModel(
        **HEADS,
        num_single_layers=2,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        axes_dims_rope=(8, 12, 12),
        guidance_embeds=True,
    )


def pixart(sample_size=32):
    return PixArtTransformer2DModel(
        **HEADS, sample_size=sample_size, cross_attention_dim=128, caption_channels=64
    )


MINI = {
    "height": 64,
    "width": 64,
    "vae_factor": 4,
    "tokens": networks.TOKENS,
    "dtype": torch.float32,
}
SMALL = {"height": 256, "width": 256, "vae_factor": 8, "dtype": torch.float32}
CASES = {
    "mini-sd, 1 row": (networks.denoiser, MINI | {"rows": 1}),
    "mini-sd, 2 rows": (networks.denoiser, MINI | {"rows": 2}),
    "mini-sd, 8 rows": (networks.denoiser, MINI | {"rows": 8}),
    "mini-sd, channels last": (channels_last, MINI | {"rows": 8}),
    "sdxl": (sdxl, SMALL | {"rows": 4}),
    "sd3": (sd3, SMALL | {"rows": 2}),
    "flux": (flux, SMALL | {"rows": 2}),
    "pixart": (pixart, SMALL | {"rows": 2}),
    "pixart, another size": (lambda: pixart(16), SMALL | {"rows": 2, "width": 128}),
}
every_case = pytest.mark.parametrize("case", CASES)
AGAIN = {"mini-sd, 1 row", "pixart, another size"}
"""Further sizes of networks that are tried at another."""
most_cases = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] if case in AGAIN else []) for case in CASES],
)


@cache
def counted(case):
    make, call = CASES[case]
    with torch.device("meta"):
        return footprint(make(), **call)


def real(case):
    make, call = CASES[case]
    denoiser = make().eval()
    return denoiser, arguments(denoiser, **call)


@pytest.mark.slow
@every_case
def test_flop_is_that_of_a_real_call(case):
    denoiser, call = real(case)
    assert counted(case).flop == denoiser_flop(denoiser, **call) > 0


@most_cases
@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="convolutions take other memory without oneDNN"
)
def test_peak_on_the_cpu_is_that_of_the_allocator(case):
    denoiser, call = real(case)
    with torch.no_grad(), AllocatorTrace() as trace:
        denoiser(**call)
    assert counted(case).cpu_peak_bytes == pytest.approx(
        trace.peak_bytes, rel=0.1
    )  # equal with AVX-512


@most_cases
def test_peak_of_activations_is_that_of_the_operations_of_a_real_call(case):
    denoiser, call = real(case)
    outside = [
        *denoiser.parameters(),
        *denoiser.buffers(),
        *call.values(),
        *call.get("added_cond_kwargs", {}).values(),
    ]
    with torch.no_grad(), LiveBytes(outside) as live:
        denoiser(**call)
    assert counted(case).activation_peak_bytes == live.peak_bytes


def test_flop_and_peak_grow_with_the_rows_and_weights_do_not():
    two, eight = counted("mini-sd, 2 rows"), counted("mini-sd, 8 rows")
    assert eight == replace(
        two,
        flop=4 * two.flop,
        activation_peak_bytes=4 * two.activation_peak_bytes,
        cpu_peak_bytes=eight.cpu_peak_bytes,  # the copied weights do not grow
    )


SIZES = {  # FLOPs of a row at the default side, and bytes of the weights in float32
    "sd15": (803_273_441_280, 4 * 859_520_964),
    "sd21": (2_149_105_745_920, 4 * 865_910_724),
    "sdxl": (6_761_236_398_080, 4 * 2_567_463_684),
    "sd35-medium": (11_249_573_707_776, 4 * 2_469_663_936),
    "flux": (74_384_653_418_496, 4 * 11_901_408_320),
    "pixart-sigma": (
        6_633_579_773_952,
        4 * (610_856_096 + 64 * 64 * 1152),
    ),  # with the position embedding
}


@pytest.mark.parametrize(
    "name",
    ["sd15", *(pytest.param(name, marks=pytest.mark.slow) for name in SIZES if name != "sd15")],
)
def test_full_size_architectures_are_counted_without_their_weights(name):
    side = ARCHITECTURES[name].side
    denoiser = meta_denoiser(ARCHITECTURES[name])
    got = footprint(denoiser, rows=1, height=side, width=side, dtype=torch.float32, vae_factor=8)
    assert (got.flop, got.weights_bytes) == SIZES[name]
    assert 100e6 < got.activation_peak_bytes <= got.cpu_peak_bytes < 1e9
    assert all(parameter.is_meta for parameter in denoiser.parameters())


def test_every_architecture_has_its_sizes():
    assert list(SIZES) == list(ARCHITECTURES)


def test_half_precision_halves_what_a_checkpoint_has():
    with torch.device("meta"):
        denoiser = pixart()
    full, half = (
        footprint(denoiser, **SMALL | {"rows": 1, "dtype": kind})
        for kind in (torch.float32, torch.bfloat16)
    )
    embedding = 16 * 16 * 128 * 4  # of positions, computed in float32
    assert half.weights_bytes - embedding == (full.weights_bytes - embedding) / 2
    assert half.flop == full.flop
    assert half.activation_peak_bytes < 0.6 * full.activation_peak_bytes


@pytest.mark.parametrize("mode", [nullcontext, FakeTensorMode])
def test_live_bytes_of_known_operations(mode):
    with mode():
        outside = torch.ones(1000)
        with LiveBytes([outside, None]) as live:
            first = outside[:500] + 1
            second = first * 2
            del first
            kept = [second.view(10, 50)[2:], second.add_(1), torch.cat([second, second])]
            del second, kept[1], kept[0]
    assert (live.peak_bytes, live.live_bytes, len(kept)) == (6000, 4000, 1)


PIPELINES = {
    "sd": (
        tiny.stable_diffusion,
        {"rows": 4, "height": 16, "width": 16, "vae_factor": 2, "tokens": networks.TOKENS},
    ),
    "sdxl": (
        tiny.stable_diffusion_xl,
        {"rows": 4, "height": 16, "width": 16, "vae_factor": 2, "tokens": 3},
    ),
    "sd3": (
        tiny.stable_diffusion_3,
        {"rows": 4, "height": 16, "width": 16, "vae_factor": 2, "tokens": 3},
    ),
    "flux": (tiny.flux, {"rows": 2, "height": 32, "width": 32, "vae_factor": 2, "tokens": 3}),
    "pixart": (
        concatenated.pixart_sigma,
        {"rows": 8, "height": 32, "width": 64, "vae_factor": 8, "tokens": 3},
    ),
}


def shapes(call):
    """The tensors of a call; a timestep's dtype is the scheduler's choice."""
    flat = call | (call.get("added_cond_kwargs") or {})
    tensors = {name: value for name, value in flat.items() if isinstance(value, torch.Tensor)}
    return {
        name: (value.shape, name == "timestep" or value.dtype) for name, value in tensors.items()
    }


@pytest.mark.parametrize("family", PIPELINES)
def test_arguments_are_those_of_the_pipeline(family):
    make, size = PIPELINES[family]
    pipe, calls = make(), []
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    bind = inspect.signature(denoiser.forward).bind
    denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(bind(*args, **kwargs).arguments), with_kwargs=True
    )
    tiny.run(pipe)
    made = shapes(arguments(denoiser, **size, dtype=torch.float32))
    ignored = {"resolution", "aspect_ratio"}  # PixArt Alpha's
    assert {name: shape for name, shape in made.items() if name not in ignored} == shapes(calls[0])


@pytest.mark.parametrize(
    ("make", "pipeline", "more"),
    [
        (sd3, "StableDiffusion3Pipeline", 77),
        (flux, "FluxPipeline", 0),
        (pixart, "PixArtSigmaPipeline", 0),
    ],
)
def test_texts_are_as_long_as_the_pipeline_has_them_by_default(make, pipeline, more):
    default = (
        inspect.signature(getattr(diffusers, pipeline).__call__)
        .parameters["max_sequence_length"]
        .default
    )
    with torch.device("meta"):
        assert arguments(make(), **SMALL, rows=1)["encoder_hidden_states"].shape == (
            1,
            default + more,
            64,
        )


def test_an_operation_without_a_formula_is_an_error():
    denoiser = tiny.unet()
    denoiser.conv_out.register_forward_hook(
        lambda module, args, output: torch.linalg.svdvals(output)
    )
    with pytest.raises(ValueError, match=re.escape("no FLOP formula for aten._linalg_svd")):
        footprint(denoiser, **SMALL, rows=1)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (
            networks.denoiser,
            {"height": 60},
            "multiples of 8 (VAE factor 8 x patch size 1), got 60 x 256",
        ),
        (networks.denoiser, {"width": 0}, "got 256 x 0"),
        (flux, {"width": 264}, "multiples of 16 (VAE factor 8 x patch size 2), got 256 x 264"),
        (sd3, {"height": 264}, "multiples of 16"),
        (pixart, {"height": 264}, "multiples of 16"),
        (sd3, {"rows": 0}, "rows must be at least 1, got 0"),
        (
            AuraFlowTransformer2DModel,
            {},
            "no call is known for a AuraFlowTransformer2DModel; there are calls for UNet",
        ),
        (
            lambda: tiny.unet(addition_embed_type="image", encoder_hid_dim=4),
            {},
            "addition_embed_type 'image'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, change, message):
    with torch.device("meta"):
        denoiser = make()
    with pytest.raises(ValueError, match=re.escape(message)):
        footprint(denoiser, **SMALL | {"rows": 1} | change)
