"""Krea 2, Nucleus-Image, ERNIE-Image and Ideogram 4."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Ideogram4Transformer2DModel,
    Krea2Transformer2DModel,
    NucleusMoEImageTransformer2DModel,
)
from transformers import Qwen3VLConfig, Qwen3VLModel

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
    ready,
    steps,
)
from tools.pipelines.small import SCALE, Small, rows, small

ABSENT: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
LAYERS = 2
"""Of a text encoder that Krea 2 reads."""


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def _with_bools(texts: Any) -> Any:
    """The same with masks of true and false."""
    name = "prompt_embeds_mask"

    def draw(images: int, seed: int) -> dict[str, Any]:
        drawn = texts(images, seed)
        return drawn | {name: drawn[name].bool()}

    return draw


@small("Krea2Pipeline")
def krea_2(kind: type) -> Small:
    """Two calls a step, the conditional one first, and c + w (c - u), whose w is less by one."""
    torch.manual_seed(0)
    transformer = Krea2Transformer2DModel(
        **HEADS,
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_key_value_heads=1,
        intermediate_size=16,
        timestep_embed_dim=8,
        text_hidden_dim=WIDTH,
        num_text_layers=LAYERS,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=8,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=AXES,
    )
    pipe = kind(**ABSENT, transformer=transformer, scheduler=_scheduler())
    texts = embeddings("prompt_embeds_mask", prompt_embeds=(TOKENS, LAYERS, WIDTH))
    return guided(pipe, _with_bools(texts), scale=SCALE - 1.0, off=0.0)


@small("NucleusMoEImagePipeline")
def nucleus(kind: type) -> Small:
    """Two calls a step, the conditional one first; rescaled to its norm and turned in sign."""
    torch.manual_seed(0)
    transformer = NucleusMoEImageTransformer2DModel(
        **HEADS,
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        num_key_value_heads=1,
        joint_attention_dim=WIDTH,
        axes_dims_rope=AXES,
        mlp_ratio=1.0,
        num_experts=2,
        moe_intermediate_dim=8,
    )
    pipe = kind(
        transformer=transformer,
        scheduler=_scheduler(),
        vae=None,
        text_encoder=None,
        processor=None,
    )
    texts = embeddings("prompt_embeds_mask", prompt_embeds=(TOKENS, WIDTH))
    return guided(pipe, _with_bools(texts))


def _lists(images: int, seed: int) -> dict[str, Any]:
    """Embeddings of as many tokens as the prompt has."""
    drawn = rows(images, TOKENS + 1, WIDTH, seed=10 * seed)
    return {"prompt_embeds": [text[: TOKENS + image % 2] for image, text in enumerate(drawn)]}


@small("ErnieImagePipeline")
def ernie(kind: type) -> Small:
    """Both halves in one call, the unconditional one first; within, the images come second."""
    torch.manual_seed(0)
    transformer = ErnieImageTransformer2DModel(
        hidden_size=16,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_in_dim=WIDTH,
        rope_axes_dim=(4, 2, 2),
    )
    pipe = kind(**ABSENT, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler())
    return guided(pipe, _lists, lambda images: {"height": 64, "width": 64})


DEPTH = 36
"""Layers of the text encoder, thirteen of which Ideogram 4 reads."""


def _language_model() -> Qwen3VLModel:
    text = {
        "vocab_size": 128,
        "hidden_size": WIDTH,
        "intermediate_size": 8,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [2, 1, 1],
        },
    }
    vision = {
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_heads": 1,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 4,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision))


def _ideogram_transformer() -> Ideogram4Transformer2DModel:
    return Ideogram4Transformer2DModel(
        **HEADS,
        in_channels=4 * CHANNELS,
        num_layers=1,
        intermediate_size=16,
        adaln_dim=8,
        llm_features_dim=13 * WIDTH,
        mrope_section=(2, 1, 1),
    )


@small("Ideogram4Pipeline")
def ideogram(kind: type) -> Small:
    """A denoiser for each half, called one after the other, and no scale that saves one."""
    torch.manual_seed(0)
    pipe = kind(
        transformer=_ideogram_transformer(),
        unconditional_transformer=_ideogram_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=_language_model(),
        tokenizer=words.tokenizer(),
    )
    fixed = PIXELS | {
        "guidance_scale": SCALE,
        "guidance_schedule": None,
        "max_sequence_length": 8,
    }
    return Small(
        ready(pipe),
        call=lambda images: steps(images) | fixed | words.prompts(images, 1),
        off=lambda images: {"guidance_scale": 1.0},
        another=lambda images: words.prompts(images, 3),
    )
