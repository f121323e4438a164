"""DiT and latent diffusion, the oldest pipelines: they do not stop at latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from transformers import CLIPTextModel

from tools.pipelines.parts.flow_image import vae
from tools.pipelines.parts.unet import (
    SIDE,
    build,
    conditioned,
    networks,
    scheduler,
    spoken,
    text_config,
    tokenizer,
)
from tools.pipelines.small import Small, small

LENGTH = 77
"""Of every prompt of latent diffusion, which pads to it."""


def _classes(images: int, seed: int) -> dict[str, Any]:
    """Class 1000 is the unconditional one."""
    return {"class_labels": [10 * seed + image for image in range(images)]}


@small("DiTPipeline")
def dit(kind: type) -> Small:
    """The latents have both halves throughout, the conditional one first, and so do the steps."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        attention_bias=True,
    )
    pipe = kind(transformer=transformer, vae=vae(levels=1), scheduler=scheduler())
    return conditioned(pipe, _classes, lambda images: {"output_type": "pt"})


@small("LDMTextToImagePipeline")
def text_to_image(kind: type) -> Small:
    """The unconditional half has the empty prompt."""
    parts = networks()
    config = text_config()
    config.max_position_embeddings = LENGTH
    pipe = build(
        kind,
        vqvae=parts["vae"],
        unet=parts["unet"],
        scheduler=parts["scheduler"],
        bert=CLIPTextModel(config),
        tokenizer=tokenizer(),
    )
    own = {"height": SIDE, "width": SIDE, "output_type": "pt"}
    return conditioned(pipe, spoken, lambda images: own)
