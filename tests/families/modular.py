"""Tiny random modular pipelines: blocks, and a guider that makes two calls a step.

The whole ones encode prompts and decode latents. The others, from the recipes of `nox -s
pipelines`, are the block that denoises alone.
"""

from collections.abc import Callable
from functools import partial

import diffusers
import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3ModularPipeline,
    StableDiffusionXLModularPipeline,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdbench.models.mini_sd import networks
from sdbench.models.modular import loops_of
from sdbench.models.pipeline import invoke
from tests import tiny
from tools.pipelines.recipes import load_all
from tools.pipelines.small import RECIPES, SCALE

IMAGES = 2
HALF = tiny.WIDTH // 2
"""Of each of two text encoders."""


def _text_encoder(kind, width=HALF):
    tokenizer = tiny._tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=networks.TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config).eval()


def _whole(kind, **components):
    pipe = kind()
    pipe.update_components(
        tokenizer=tiny._tokenizer(), tokenizer_2=tiny._tokenizer(), vae=tiny.vae(), **components
    )
    for loop in loops_of(pipe):
        loop.set_progress_bar_config(disable=True)
    pipe.call = {
        "prompt": tiny.PROMPTS,
        "height": 16,
        "width": 16,
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "output_type": "latent",
    }
    return pipe


def stable_diffusion_xl():
    """A UNet with two text encoders."""
    torch.manual_seed(0)
    xl = tiny.XL_TEXT | {"projection_class_embeddings_input_dim": 6 * 4 + HALF}
    return _whole(
        StableDiffusionXLModularPipeline,
        unet=tiny.unet(**xl),
        scheduler=EulerDiscreteScheduler(),
        text_encoder=_text_encoder(CLIPTextModel),
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection),
    )


def stable_diffusion_3():
    """A transformer, without the largest of its text encoders; its guider is never asked."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=tiny.WIDTH,
        caption_projection_dim=8,
        pooled_projection_dim=tiny.WIDTH,
        pos_embed_max_size=8,
    )
    pipe = _whole(
        StableDiffusion3ModularPipeline,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=_text_encoder(CLIPTextModelWithProjection),
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection),
    )
    pipe.vae.register_to_config(shift_factor=0.0)
    pipe.call["negative_prompt"] = [""] * len(tiny.PROMPTS)
    return pipe


def by_recipe(name):
    """A small pipeline of a class, as `nox -s pipelines` makes it."""
    load_all()
    small = RECIPES[name](getattr(diffusers, name))
    call = small.call(IMAGES) | {"guidance_scale": SCALE, "output_type": "latent"}
    small.pipe.call = {key: value for key, value in call.items() if key != "output"}
    return small.pipe


RECIPE_OF = {
    "wan-modular": "WanModularPipeline",
    "wan-2.2-modular": "Wan22ModularPipeline",
    "qwen-image-modular": "QwenImageModularPipeline",
    "krea-2-modular": "Krea2ModularPipeline",
}
WHOLE: dict[str, Callable] = {
    "sdxl-modular": stable_diffusion_xl,
    "sd3-modular": stable_diffusion_3,
}
FAMILIES: dict[str, Callable] = WHOLE | {
    family: partial(by_recipe, name) for family, name in RECIPE_OF.items()
}


def run(pipe, **changes):
    """The latents of one call, from the same noise every time."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(IMAGES)]
    (latents,) = invoke(pipe, pipe.call | {"generator": generators} | changes).values()
    return latents
