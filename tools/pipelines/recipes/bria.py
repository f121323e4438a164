"""Bria and FIBO: both halves in one call; the second FIBO makes two calls a step."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    BriaFibo2Transformer2DModel,
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
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
    vae,
    wan_vae,
)
from tools.pipelines.small import Small, small

BLOCKS = HEADS | {"num_layers": 1, "num_single_layers": 1, "axes_dims_rope": AXES}
SIZE = {"height": 64, "width": 64}
"""4 x 4 tokens."""


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


@small("BriaPipeline")
def bria(kind: type) -> Small:
    """Packed latents, and ids without a dimension of images."""
    torch.manual_seed(0)
    transformer = BriaTransformer2DModel(
        **BLOCKS, in_channels=4 * CHANNELS, joint_attention_dim=WIDTH
    )
    pipe = kind(
        transformer=transformer,
        scheduler=_scheduler(),
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
    )
    return guided(pipe, embeddings(prompt_embeds=(TOKENS, WIDTH)))


def _fibo_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = BriaFiboTransformer2DModel(
        **BLOCKS,
        in_channels=CHANNELS,
        joint_attention_dim=2 * WIDTH,
        text_encoder_dim=WIDTH,
    )
    return {
        "transformer": transformer,
        "scheduler": _scheduler(),
        "vae": wan_vae(levels=5),
        "text_encoder": words.Reader(),
        "tokenizer": words.tokenizer(),
    }


def _edits(images: int, seed: int) -> dict[str, Any]:
    """Prompts as the class wants them, in JSON."""
    texts = words.prompts(images, seed)["prompt"]
    return {"prompt": [f'{{"edit_instruction": "{text}"}}' for text in texts]}


@small("BriaFiboPipeline")
def fibo(kind: type) -> Small:
    """A list of the text's layers, and a mask of both halves in a dict."""
    return guided(kind(**_fibo_parts()), words.prompts, lambda images: SIZE)


@small("BriaFiboEditPipeline")
def fibo_edit(kind: type) -> Small:
    """The same, and the tokens of a picture come after those of the latents."""
    return guided(kind(**_fibo_parts()), _edits, lambda images: SIZE | {"image": photos(1)})


def _bundles(images: int, seed: int) -> dict[str, Any]:
    """Features of a text for each layer that reads it."""
    drawn = embeddings("prompt_embeds_mask", prompt_embeds=(2, TOKENS, WIDTH))(images, seed)
    return drawn | {"prompt_embeds_mask": drawn["prompt_embeds_mask"].bool()}


@small("BriaFibo2Pipeline")
def fibo_2(kind: type) -> Small:
    """The conditional half first; a text comes down to a few tokens."""
    torch.manual_seed(0)
    transformer = BriaFibo2Transformer2DModel(
        in_channels=CHANNELS,
        dim=24,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=3,
        cap_feat_dim=WIDTH,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=2,
        max_num_gist_tokens=4,
        gist_step=1,
        gist_min_text_len=2,
        gist_max_text_len=8,
        axes_dims=(4, 2, 2),
        axes_lens=(32, 16, 16),
    )
    pipe = kind(
        transformer=transformer,
        scheduler=_scheduler(),
        vae=None,
        text_encoder=None,
        processor=None,
    )
    return guided(pipe, _bundles, lambda images: PIXELS)
