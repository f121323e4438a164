"""Pipelines of diffusers' own classes with tiny random weights: a call of a few steps takes some 50 ms.

All make 2 images of 8 x 8 latents from 2 prompts; the seam must treat every one alike.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdbench.models.mini_sd import networks

PROMPTS = ["a large red circle on a blue background", "a small green star on a white background"]
WIDTH = 8  # of every text embedding


@cache
def _tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return networks.write_tokenizer(Path(folder))


def _vae(**changes):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
        **changes,
    )


_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
}


def _unet(**changes):
    return UNet2DConditionModel(sample_size=8, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **_BLOCKS, **changes)


def _text_encoder():
    tokenizer = _tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=networks.TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.x."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _ready(pipe, **call):
    """A pipeline together with the arguments that it needs."""
    pipe.set_progress_bar_config(disable=True)
    pipe.call = {"num_inference_steps": 4, "output_type": "latent"} | call
    return pipe


def _sd_parts():
    return {
        "vae": _vae(),
        "text_encoder": _text_encoder(),
        "tokenizer": _tokenizer(),
        "unet": _unet(),
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def stable_diffusion(kind=DDIMScheduler, **settings):
    """Concatenated guidance; `kind` is the scheduler's class, `settings` change its configuration."""
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(**_sd_parts())
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **settings)
    return _ready(pipe, prompt=PROMPTS, guidance_scale=7.5)


def image_to_image():
    """Concatenated guidance in a loop that is shorter than the scheduler's: 3 of 5 steps."""
    torch.manual_seed(0)
    pipe = StableDiffusionImg2ImgPipeline(**_sd_parts())
    image = torch.rand(2, 3, 16, 16)
    return _ready(pipe, prompt=PROMPTS, image=image, guidance_scale=7.5, strength=0.6, num_inference_steps=5)


def controlnet():
    """Concatenated guidance whose denoiser gets lists of tensors with a batch dimension."""
    torch.manual_seed(0)
    control = ControlNetModel(**_BLOCKS, conditioning_embedding_out_channels=(4, 4))
    for layer in control.controlnet_down_blocks:  # zero in a new one, so the residuals would change nothing
        torch.nn.init.normal_(layer.weight)
    pipe = StableDiffusionControlNetPipeline(**_sd_parts(), controlnet=control)
    return _ready(pipe, prompt=PROMPTS, image=torch.rand(2, 3, 16, 16), guidance_scale=7.5)


def _embeddings():
    texts, pooled = torch.randn(2, 2, 3, WIDTH), torch.randn(2, 2, WIDTH)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return dict(zip(names, (*texts, *pooled), strict=True))


def stable_diffusion_xl():
    """Concatenated guidance with a nested dict of tensors, on a variance-exploding scheduler."""
    torch.manual_seed(0)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    unet = _unet(**added, projection_class_embeddings_input_dim=6 * 4 + WIDTH)
    pipe = StableDiffusionXLPipeline(_vae(), None, None, None, None, unet, EulerDiscreteScheduler())
    return _ready(pipe, **_embeddings(), guidance_scale=5.0, height=16, width=16)


def stable_diffusion_3():
    """Concatenated guidance of a transformer, flow matching."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=8,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
    )
    texts = {f"{kind}{suffix}": None for kind in ("text_encoder", "tokenizer") for suffix in ("", "_2", "_3")}
    parts = {"transformer": transformer, "scheduler": FlowMatchEulerDiscreteScheduler(), "vae": _vae(shift_factor=0.0)}
    return _ready(StableDiffusion3Pipeline(**parts, **texts), **_embeddings(), guidance_scale=5.0, height=16, width=16)


def flux():
    """Guidance by two calls, the conditional one first; flow matching."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
    )
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    parts = {"transformer": transformer, "scheduler": FlowMatchEulerDiscreteScheduler(), "vae": _vae(shift_factor=0.0)}
    return _ready(FluxPipeline(**parts, **texts), **_embeddings(), true_cfg_scale=4.0, height=32, width=32)


FAMILIES = {
    "sd": stable_diffusion,
    "img2img": image_to_image,
    "controlnet": controlnet,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": flux,
}
TWO_CALLS = {"flux"}


def run(pipe, **changes):
    """The latents of one call, from the same noise every time."""
    return pipe(**pipe.call | {"generator": torch.Generator("cpu").manual_seed(1)} | changes).images


@contextmanager
def counted_rows(pipe) -> Iterator[list[int]]:
    """The rows of every evaluation, counted at the denoiser's first inner layer, where no wrapper is left."""
    rows: list[int] = []
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    names = ("conv_in", "x_embedder", "pos_embed")  # of a UNet, of Flux, of SD3
    layer = next(getattr(denoiser, name) for name in names if hasattr(denoiser, name))
    handle = layer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()
