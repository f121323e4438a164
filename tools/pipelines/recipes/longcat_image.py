"""LongCat-Image and Ovis-Image: two calls a step, the conditional one first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LongCatImageTransformer2DModel,
    OvisImageTransformer2DModel,
)

from tools.pipelines.parts import words
from tools.pipelines.parts.flow_image import (
    AXES,
    CHANNELS,
    HEADS,
    PIXELS,
    TOKENS,
    WIDTH,
    embeddings,
    guided,
    photos,
    ready,
    steps,
    vae,
)
from tools.pipelines.parts.shrinker import Shrinker
from tools.pipelines.small import SCALE, Small, small

BLOCKS = HEADS | {
    "num_layers": 1,
    "num_single_layers": 1,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": AXES,
}
LATENTS = 16
"""Channels, which the pipelines of LongCat take for granted."""
LENGTH = 8
"""Of a prompt in tokens."""


@small("OvisImagePipeline")
def ovis(kind: type) -> Small:
    """Packed latents, and ids without a dimension of images."""
    torch.manual_seed(0)
    transformer = OvisImageTransformer2DModel(
        **BLOCKS, in_channels=4 * CHANNELS, out_channels=4 * CHANNELS
    )
    pipe = kind(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    texts = embeddings(prompt_embeds=(TOKENS, WIDTH))
    return guided(pipe, texts, lambda images: PIXELS | {"negative_prompt": None})


def _longcat(kind: type, autoencoder: Callable[[int], Any]) -> Any:
    torch.manual_seed(0)
    transformer = LongCatImageTransformer2DModel(
        **BLOCKS, in_channels=4 * LATENTS, pooled_projection_dim=WIDTH
    )
    tokenizer = words.tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
    pipe = kind(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(LATENTS),
        text_encoder=words.Reader(),
        tokenizer=tokenizer,
        text_processor=words.Processor(tokenizer),
    )
    pipe.tokenizer_max_length = LENGTH
    return pipe


@small("LongCatImagePipeline")
def longcat(kind: type) -> Small:
    """The guided prediction is rescaled where its norm grew; the language model stays away."""
    fixed = PIXELS | {"enable_prompt_rewrite": False}
    return guided(_longcat(kind, vae), words.prompts, lambda images: fixed)


@small("LongCatImageEditPipeline")
def longcat_edit(kind: type) -> Small:
    """One prompt and a picture, which it brings to 1024 x 1024 pixels, here 8 x 8 latents."""
    fixed = {
        "image": photos(1)[0],
        "negative_prompt": words.prompt(0, 2),
        "guidance_scale": SCALE,
    }
    return Small(
        ready(_longcat(kind, Shrinker)),
        call=lambda images: steps(images) | fixed | words.one_prompt(images, 1),
        off=lambda images: {"guidance_scale": 1.0},
        another=lambda images: words.one_prompt(images, 3),
    )
