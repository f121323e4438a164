"""HiDream: both halves in one call; a text has an embedding of each layer of its encoder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImageTransformer2DModel

from tools.pipelines.parts.flow_image import (
    CHANNELS,
    HEADS,
    PIXELS,
    TOKENS,
    WIDTH,
    embeddings,
    guided,
    vae,
)
from tools.pipelines.small import Small, small

LAYERS = 2
"""Of the largest text encoder, one for each block: as many as an image has rows."""
_DRAWN = embeddings(
    prompt_embeds_t5=(TOKENS, WIDTH),
    prompt_embeds_llama3=(LAYERS, TOKENS, WIDTH),
    pooled_prompt_embeds=(WIDTH,),
)


def _texts(images: int, seed: int) -> dict[str, Any]:
    """The layers come before the images."""
    drawn = _DRAWN(images, seed)
    return drawn | {"prompt_embeds_llama3": drawn["prompt_embeds_llama3"].movedim(1, 0)}


@small("HiDreamImagePipeline")
def hidream(kind: type) -> Small:
    """The rows of the layers' embeddings are not the images."""
    torch.manual_seed(0)
    transformer = HiDreamImageTransformer2DModel(
        **HEADS,
        patch_size=2,
        in_channels=CHANNELS,
        num_layers=1,
        num_single_layers=1,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=WIDTH,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=list(range(LAYERS)),
    )
    texts = {
        f"{part}{place}": None
        for part in ("text_encoder", "tokenizer")
        for place in ("", "_2", "_3", "_4")
    }
    pipe = kind(
        **texts,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(),
    )
    pipe.default_sample_size = PIXELS["height"] // pipe.vae_scale_factor  # all sizes come to it
    return guided(pipe, _texts)
