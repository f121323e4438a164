"""Lumina: both halves in one call, the conditional one first; its second version has two calls."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
)

from tools.pipelines.parts.flow_image import (
    CHANNELS,
    HEADS,
    TOKENS,
    WIDTH,
    embeddings,
    guided,
)
from tools.pipelines.small import Small, small

TEXTS = embeddings("prompt_attention_mask", prompt_embeds=(TOKENS, WIDTH))
HIDDEN = HEADS["num_attention_heads"] * HEADS["attention_head_dim"]
ABSENT: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer"))


@small("LuminaPipeline")
def lumina(kind: type) -> Small:
    """Guided in its first three channels only; a learned variance is thrown away."""
    torch.manual_seed(0)
    transformer = LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=CHANNELS,
        hidden_size=HIDDEN,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        cross_attention_dim=WIDTH,
    )
    torch.nn.init.zeros_(transformer.pad_token)  # left as the memory was
    pipe = kind(**ABSENT, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler())
    return guided(pipe, TEXTS)


@small("Lumina2Pipeline")
def lumina_2(kind: type) -> Small:
    """The guided prediction is rescaled to the conditional one's norm, and its sign turned."""
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=CHANNELS,
        hidden_size=HIDDEN,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(8, 8, 8),
        cap_feat_dim=WIDTH,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    return guided(kind(**ABSENT, transformer=transformer, scheduler=scheduler), TEXTS)
