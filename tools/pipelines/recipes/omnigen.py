"""OmniGen and DreamLite: both halves in one call, always."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    DreamLiteUNetModel,
    FlowMatchEulerDiscreteScheduler,
    OmniGenTransformer2DModel,
)

from tools.pipelines.parts import words
from tools.pipelines.parts.flow_image import (
    CHANNELS,
    PIXELS,
    WIDTH,
    ready,
    steps,
    vae,
)
from tools.pipelines.small import SCALE, WITHOUT_HALVES, Small, small

WITHOUT_HALVES["DreamLiteMobilePipeline"] = "guidance is distilled into the weights"


def _always_guided(
    pipe: Any, texts: Any, fixed: dict[str, Any], batches: tuple[int, ...] = (1, 2)
) -> Small:
    """At a scale of 1 the unconditional half is computed and does not count."""
    return Small(
        ready(pipe),
        call=lambda images: (
            steps(images) | fixed | PIXELS | texts(images, 1) | {"guidance_scale": SCALE}
        ),
        off=lambda images: {"guidance_scale": 1.0},
        another=lambda images: texts(images, 3),
        batches=batches,
    )


@small("OmniGenPipeline")
def omnigen(kind: type) -> Small:
    """The conditional half first; the denoiser reads the words itself."""
    torch.manual_seed(0)
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
    transformer = OmniGenTransformer2DModel(
        in_channels=CHANNELS,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        num_layers=1,
        pad_token_id=0,
        vocab_size=128,
        max_position_embeddings=256,
        original_max_position_embeddings=256,
        rope_scaling=factors,
        pos_embed_max_size=8,
        time_step_dim=8,
    )
    pipe = kind(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=vae(),
        tokenizer=words.tokenizer(),
    )
    return _always_guided(pipe, words.prompts, {})


def _unet() -> DreamLiteUNetModel:
    return DreamLiteUNetModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=(
            "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
            "DreamLiteCrossAttnDownBlock2D",
        ),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteCrossAttnNoSelfAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        addition_embed_type="time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8,
        ff_mult=2,
    )


@small("DreamLitePipeline")
def dreamlite(kind: type) -> Small:
    """A second picture stands to the right of the latents and is cut off the prediction.

    It gives the denoiser one size for each half, not for each row: one image only.
    """
    torch.manual_seed(0)
    small_vae = AutoencoderTiny(
        encoder_block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
        latent_channels=CHANNELS,
    )
    pipe = kind(
        unet=_unet(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=small_vae,
        text_encoder=words.Reader(),
        tokenizer=words.tokenizer(),
        processor=None,
    )
    fixed = {"negative_prompt": words.prompt(0, 2)}
    return _always_guided(pipe, words.one_prompt, fixed, batches=(1,))
