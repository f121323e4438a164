"""PRX: both halves in one call, the unconditional one first, of one image only."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PRXTransformer2DModel

from tools.pipelines.parts.flow_image import (
    CHANNELS,
    PIXELS,
    TOKENS,
    WIDTH,
    embeddings,
    guided,
)
from tools.pipelines.small import Small, small

_DRAWN = embeddings("prompt_attention_mask", prompt_embeds=(TOKENS, WIDTH))
PIXEL_SIZE = {"height": 8, "width": 8}


def _texts(images: int, seed: int) -> dict[str, Any]:
    drawn = _DRAWN(images, seed)
    return drawn | {"prompt_attention_mask": drawn["prompt_attention_mask"].bool()}


def _parts(channels: int) -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = PRXTransformer2DModel(
        in_channels=channels,
        context_in_dim=WIDTH,
        hidden_size=16,
        num_heads=2,
        depth=1,
        axes_dim=[4, 4],
    )
    return {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": None,
        "tokenizer": None,
    }


def _guided(pipe: Any, size: dict[str, int]) -> Small:
    """It gives the denoiser one time for each half, not for each row."""
    fixed = size | {"use_resolution_binning": False, "negative_prompt": None}
    return guided(pipe, _texts, lambda images: fixed, batches=(1,))


@small("PRXPipeline")
def latent(kind: type) -> Small:
    """In latents."""
    return _guided(kind(**_parts(CHANNELS), vae=None), PIXELS)


@small("PRXPixelPipeline")
def pixel(kind: type) -> Small:
    """In pixels: the guided image is turned into a velocity before the scheduler gets it."""
    return _guided(kind(**_parts(3)), PIXEL_SIZE)
