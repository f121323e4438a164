"""JoyImage: latents with a dimension of pictures, of which all but one are given."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
)

from tools.pipelines.parts import words
from tools.pipelines.parts.flow_image import (
    CHANNELS,
    TOKENS,
    WIDTH,
    embeddings,
    guided,
    photos,
)
from tools.pipelines.parts.shrinker import Shrinker
from tools.pipelines.small import WITHOUT_HALVES, Small, small

WITHOUT_HALVES["LLaDA2Pipeline"] = "a language model; it makes no latents"
WITHOUT_HALVES["DiffusionGemmaPipeline"] = "a language model; it makes no latents"

SIZES: dict[str, Any] = {
    "in_channels": CHANNELS,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "text_dim": WIDTH,
    "mlp_width_ratio": 1.0,
    "num_layers": 1,
    "rope_dim_list": [2, 2, 4],
}


@small("JoyImageEditPipeline")
def edit(kind: type) -> Small:
    """Two calls a step, the conditional one first; a picture is laid over its latents each time."""
    torch.manual_seed(0)
    pipe = kind(
        transformer=JoyImageEditTransformer3DModel(**SIZES),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=Shrinker(CHANNELS),
        text_encoder=None,
        tokenizer=None,
        processor=None,
    )
    texts = embeddings("prompt_embeds_mask", prompt_embeds=(TOKENS, WIDTH))
    return guided(pipe, texts, lambda images: {"image": photos(1)[0]})


@small("JoyImageEditPlusPipeline")
def edit_plus(kind: type) -> Small:
    """Both halves in one call; patches of all pictures, whose shapes are a list for each image."""
    torch.manual_seed(0)
    tokenizer = words.tokenizer()
    pipe = kind(
        transformer=JoyImageEditPlusTransformer3DModel(**SIZES),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=Shrinker(CHANNELS),
        text_encoder=words.Reader(),
        tokenizer=tokenizer,
        processor=words.Processor(tokenizer),
    )
    return guided(
        pipe, words.prompts, lambda images: {"images": [[photo] for photo in photos(images)]}
    )
