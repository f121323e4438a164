"""Small networks that both a stock pipeline and a modular one of the same model take."""

from __future__ import annotations

from diffusers import (
    ErnieImageTransformer2DModel,
    Flux2Transformer2DModel,
    Ideogram4Transformer2DModel,
    Krea2Transformer2DModel,
    QwenImage21Transformer2DModel,
)

from tools.pipelines.parts.flow_image import AXES, CHANNELS, HEADS, WIDTH

PACKED = HEADS | {"in_channels": 4 * CHANNELS, "num_layers": 1}
"""Of a transformer whose tokens are four latents each."""
LAYERS = 2
"""Of a text encoder that Krea 2 reads."""


def krea_2() -> Krea2Transformer2DModel:
    """It reads several layers of its text encoder."""
    return Krea2Transformer2DModel(
        **PACKED,
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


def ernie() -> ErnieImageTransformer2DModel:
    """Of ERNIE-Image."""
    return ErnieImageTransformer2DModel(
        hidden_size=16,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_in_dim=WIDTH,
        rope_axes_dim=(4, 2, 2),
    )


def ideogram(text_width: int) -> Ideogram4Transformer2DModel:
    """Of one half of Ideogram 4's guidance."""
    return Ideogram4Transformer2DModel(
        **PACKED,
        intermediate_size=16,
        adaln_dim=8,
        llm_features_dim=text_width,
        mrope_section=(2, 1, 1),
    )


def qwen_image_21() -> QwenImage21Transformer2DModel:
    """It keeps keys and values of the text."""
    return QwenImage21Transformer2DModel(
        **HEADS,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        context_in_dim=WIDTH,
        axes_dims_rope=AXES,
    )


def flux_2() -> Flux2Transformer2DModel:
    """Without a scale of its own."""
    return Flux2Transformer2DModel(
        **PACKED,
        num_single_layers=1,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
