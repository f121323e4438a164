"""CogView 3, both halves in one call, and CogView 4 and GLM-Image, two calls a step."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    GlmImageTransformer2DModel,
)

from tools.pipelines.parts.flow_image import (
    CHANNELS,
    HEADS,
    PIXELS,
    TOKENS,
    WIDTH,
    embeddings,
    guided,
    pictures,
    vae,
)
from tools.pipelines.small import Small, small

TEXTS = embeddings(prompt_embeds=(TOKENS, WIDTH))
ABSENT: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
SIZES = HEADS | {
    "out_channels": CHANNELS,
    "num_layers": 1,
    "text_embed_dim": WIDTH,
    "time_embed_dim": 8,
    "condition_dim": 2,
}
PLACES = {"pos_embed_max_size": 8, "sample_size": 8}
CODES = 16
"""That an image's first draft can be made of."""


@small("CogView3PlusPipeline")
def cogview_3(kind: type) -> Small:
    """Negative embeddings are replaced by zeros."""
    torch.manual_seed(0)
    transformer = CogView3PlusTransformer2DModel(**SIZES, **PLACES, in_channels=CHANNELS)
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    return guided(kind(**ABSENT, transformer=transformer, scheduler=scheduler), TEXTS)


def _cogview_4(kind: type, channels: int, **parts: Any) -> Any:
    torch.manual_seed(0)
    transformer = CogView4Transformer2DModel(
        **SIZES, **PLACES, in_channels=channels, rope_axes_dim=(16, 16)
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return kind(**ABSENT | parts, transformer=transformer, scheduler=scheduler)


@small("CogView4Pipeline")
def cogview_4(kind: type) -> Small:
    """The conditional half first."""
    return guided(_cogview_4(kind, CHANNELS), TEXTS)


@small("CogView4ControlPipeline")
def cogview_4_control(kind: type) -> Small:
    """The picture's latents are more channels."""
    return guided(
        _cogview_4(kind, 2 * CHANNELS, vae=vae()),
        TEXTS,
        lambda images: PIXELS | {"control_image": pictures(images)},
    )


@small("GlmImagePipeline")
def glm_image(kind: type) -> Small:
    """A draft of the image, a code for each token, which the unconditional half does not see."""
    torch.manual_seed(0)
    transformer = GlmImageTransformer2DModel(
        **SIZES, in_channels=CHANNELS, prior_vq_quantizer_codebook_size=CODES
    )
    pipe = kind(
        **ABSENT,
        processor=None,
        vision_language_encoder=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    drafts = torch.arange(8).reshape(2, 4)
    return guided(pipe, TEXTS, lambda images: PIXELS | {"prior_token_ids": drafts[:images]})
