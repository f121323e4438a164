"""Krea 2, Nucleus-Image, ERNIE-Image and Ideogram 4."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    NucleusMoEImageTransformer2DModel,
)
from transformers import Qwen3VLConfig, Qwen3VLModel

from tools.pipelines.parts import image_networks, words
from tools.pipelines.parts.flow_image import (
    AXES,
    CHANNELS,
    HEADS,
    PIXELS,
    TOKENS,
    WIDTH,
    embeddings,
    guided,
    lists,
    ready,
    shifted,
    steps,
    with_bools,
)
from tools.pipelines.small import SCALE, Small, small

ABSENT: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer"))


@small("Krea2Pipeline")
def krea_2(kind: type) -> Small:
    """Two calls a step, the conditional one first, and c + w (c - u), whose w is less by one."""
    torch.manual_seed(0)
    pipe = kind(**ABSENT, transformer=image_networks.krea_2(), scheduler=shifted())
    texts = embeddings("prompt_embeds_mask", prompt_embeds=(TOKENS, image_networks.LAYERS, WIDTH))
    return guided(pipe, with_bools(texts), scale=SCALE - 1.0, off=0.0)


@small("NucleusMoEImagePipeline")
def nucleus(kind: type) -> Small:
    """Two calls a step, the conditional one first; rescaled to its norm and turned in sign."""
    torch.manual_seed(0)
    transformer = NucleusMoEImageTransformer2DModel(
        **HEADS,
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        num_key_value_heads=1,
        joint_attention_dim=WIDTH,
        axes_dims_rope=AXES,
        mlp_ratio=1.0,
        num_experts=2,
        moe_intermediate_dim=8,
    )
    pipe = kind(
        transformer=transformer,
        scheduler=shifted(),
        vae=None,
        text_encoder=None,
        processor=None,
    )
    texts = embeddings("prompt_embeds_mask", prompt_embeds=(TOKENS, WIDTH))
    return guided(pipe, with_bools(texts))


@small("ErnieImagePipeline")
def ernie(kind: type) -> Small:
    """Both halves in one call, the unconditional one first; within, the images come second."""
    torch.manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = kind(**ABSENT, transformer=image_networks.ernie(), scheduler=scheduler)
    return guided(pipe, lists, lambda images: {"height": 64, "width": 64})


DEPTH = 36
"""Layers of the text encoder, thirteen of which Ideogram 4 reads."""


def _language_model() -> Qwen3VLModel:
    text = {
        "vocab_size": 128,
        "hidden_size": WIDTH,
        "intermediate_size": 8,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [2, 1, 1],
        },
    }
    vision = {
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_heads": 1,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 4,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision))


@small("Ideogram4Pipeline")
def ideogram(kind: type) -> Small:
    """A denoiser for each half, called one after the other, and no scale that saves one."""
    torch.manual_seed(0)
    pipe = kind(
        transformer=image_networks.ideogram(13 * WIDTH),
        unconditional_transformer=image_networks.ideogram(13 * WIDTH),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=_language_model(),
        tokenizer=words.tokenizer(),
    )
    fixed = PIXELS | {
        "guidance_scale": SCALE,
        "guidance_schedule": None,
        "max_sequence_length": 8,
    }
    return Small(
        ready(pipe),
        call=lambda images: steps(images) | fixed | words.prompts(images, 1),
        off=lambda images: {"guidance_scale": 1.0},
        another=lambda images: words.prompts(images, 3),
    )
