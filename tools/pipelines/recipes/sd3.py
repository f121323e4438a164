"""Stable Diffusion 3: both halves in one call, the unconditional one first; flow matching."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
)

from tools.pipelines.parts.flow_image import (
    CHANNELS,
    HEADS,
    PIXELS,
    TOKENS,
    WIDTH,
    embeddings,
    guided,
    holes,
    painted,
    pictures,
    repainted,
    vae,
)
from tools.pipelines.small import Small, small

TEXTS = embeddings(prompt_embeds=(TOKENS, WIDTH), pooled_prompt_embeds=(WIDTH,))


def _sizes(channels: int) -> dict[str, Any]:
    return HEADS | {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": 2,
        "joint_attention_dim": WIDTH,
        "caption_projection_dim": 16,
        "pooled_projection_dim": WIDTH,
        "pos_embed_max_size": 8,
    }


def _parts(channels: int = CHANNELS) -> dict[str, Any]:
    torch.manual_seed(0)
    texts = {
        f"{part}{place}": None
        for part in ("text_encoder", "tokenizer")
        for place in ("", "_2", "_3")
    }
    return texts | {
        "transformer": SD3Transformer2DModel(**_sizes(channels)),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": vae(channels),
    }


@small("StableDiffusion3Pipeline")
def text_to_image(kind: type) -> Small:
    """From noise alone."""
    return guided(kind(**_parts()), TEXTS)


@small("StableDiffusion3Img2ImgPipeline")
def image_to_image(kind: type) -> Small:
    """A loop without the first of the scheduler's steps."""
    return guided(kind(**_parts()), TEXTS, painted)


@small("StableDiffusion3InpaintPipeline")
def inpaint(kind: type) -> Small:
    """It takes no fewer channels than 16."""
    return guided(kind(**_parts(16)), TEXTS, repainted)


@small("StableDiffusion3ControlNetPipeline")
def controlnet(kind: type) -> Small:
    """The ControlNet gets both halves, and its residuals are a list."""
    parts = _parts()
    control = SD3ControlNetModel(**_sizes(CHANNELS))
    return guided(
        kind(**parts, controlnet=control),
        TEXTS,
        lambda images: PIXELS | {"control_image": pictures(images)},
    )


@small("StableDiffusion3ControlNetInpaintingPipeline")
def controlnet_inpaint(kind: type) -> Small:
    """The ControlNet gets the mask as one more channel."""
    parts = _parts()
    control = SD3ControlNetModel(**_sizes(CHANNELS), extra_conditioning_channels=1)
    return guided(
        kind(**parts, controlnet=control),
        TEXTS,
        lambda images: PIXELS | {"control_image": pictures(images), "control_mask": holes(images)},
    )


@small("StableDiffusion3PAGPipeline")
def perturbed(kind: type) -> Small:
    """With perturbed attention switched off, for that is a third of the rows."""
    pipe = kind(**_parts(), pag_applied_layers="blocks.0")
    return guided(pipe, TEXTS, lambda images: PIXELS | {"pag_scale": 0.0})


@small("StableDiffusion3PAGImg2ImgPipeline")
def perturbed_image_to_image(kind: type) -> Small:
    """The same from a picture."""
    pipe = kind(**_parts(), pag_applied_layers="blocks.0")
    return guided(pipe, TEXTS, lambda images: painted(images) | {"pag_scale": 0.0})
