"""Chroma: two calls a step, the conditional one first, each with a mask of its own."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from diffusers import ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

from tools.pipelines.parts.flow_image import (
    AXES,
    CHANNELS,
    HEADS,
    TOKENS,
    WIDTH,
    embeddings,
    guided,
    painted,
    repainted,
    vae,
)
from tools.pipelines.small import Small, small

_DRAWN = embeddings("prompt_attention_mask", prompt_embeds=(TOKENS, WIDTH))


def _texts(images: int, seed: int) -> dict[str, Any]:
    """Its own masks are floats."""
    return {name: text.float() for name, text in _DRAWN(images, seed).items()}


def _parts() -> dict[str, Any]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        # diffusers takes its rotary embedding from a deprecated place.
        warnings.simplefilter("ignore", FutureWarning)
        transformer = ChromaTransformer2DModel(
            **HEADS,
            in_channels=4 * CHANNELS,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=WIDTH,
            axes_dims_rope=AXES,
            approximator_num_channels=16,
            approximator_hidden_dim=8,
            approximator_layers=1,
        )
    # Stored with the published weights, and one pipeline asks for it.
    transformer.register_to_config(guidance_embeds=False)
    return {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": vae(),
        "text_encoder": None,
        "tokenizer": None,
    }


@small("ChromaPipeline")
def text_to_image(kind: type) -> Small:
    """From noise alone."""
    return guided(kind(**_parts()), _texts)


@small("ChromaImg2ImgPipeline")
def image_to_image(kind: type) -> Small:
    """A loop without the first of the scheduler's steps."""
    return guided(kind(**_parts()), _texts, painted)


@small("ChromaInpaintPipeline")
def inpaint(kind: type) -> Small:
    """The same with a mask that the loop applies after each step."""
    return guided(kind(**_parts()), _texts, repainted)
