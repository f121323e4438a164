"""PixArt and AuraFlow: both halves in one call, the unconditional one first."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
)

from tools.pipelines.parts.flow_image import (
    CHANNELS,
    HEADS,
    PIXELS,
    TOKENS,
    WIDTH,
    embeddings,
    guided,
)
from tools.pipelines.small import Small, small

TEXTS = embeddings("prompt_attention_mask", prompt_embeds=(TOKENS, WIDTH))
ABSENT: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer"))


def _parts() -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        **HEADS,
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=1,
        cross_attention_dim=16,
        caption_channels=WIDTH,
    )
    return ABSENT | {"transformer": transformer, "scheduler": DPMSolverMultistepScheduler()}


def _arguments(images: int) -> dict[str, Any]:
    return PIXELS | {"use_resolution_binning": False, "negative_prompt": None}


@small("PixArtAlphaPipeline", "PixArtSigmaPipeline")
def pixart(kind: type) -> Small:
    """A learned variance doubles the channels of the prediction."""
    return guided(kind(**_parts()), TEXTS, _arguments)


@small("PixArtSigmaPAGPipeline")
def perturbed(kind: type) -> Small:
    """With perturbed attention switched off, for that is a third of the rows."""
    pipe = kind(**_parts(), pag_applied_layers="blocks.0")
    return guided(pipe, TEXTS, lambda images: _arguments(images) | {"pag_scale": 0.0})


@small("AuraFlowPipeline")
def aura_flow(kind: type) -> Small:
    """Timesteps between 0 and 1; the masks do not reach the denoiser."""
    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        **HEADS,
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    )
    for block in (*transformer.joint_transformer_blocks, *transformer.single_transformer_blocks):
        torch.nn.init.normal_(block.norm1.linear.weight)  # nearly shut gates in a new one
    scheduler = FlowMatchEulerDiscreteScheduler()
    return guided(kind(**ABSENT, transformer=transformer, scheduler=scheduler), TEXTS)
