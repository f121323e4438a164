"""Sana: both halves in one call, the unconditional one first; a multistep scheduler of flow."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaControlNetModel,
    SanaTransformer2DModel,
)

from tools.pipelines.parts.flow_image import (
    CHANNELS,
    HEADS,
    PIXELS,
    TOKENS,
    WIDTH,
    Fixed,
    embeddings,
    guided,
    pictures,
)
from tools.pipelines.small import WITHOUT_HALVES, Small, small

WITHOUT_HALVES["SanaSprintPipeline"] = "guidance is distilled into the weights"
WITHOUT_HALVES["SanaSprintImg2ImgPipeline"] = "guidance is distilled into the weights"

TEXTS = embeddings("prompt_attention_mask", prompt_embeds=(TOKENS, WIDTH))
SIZES = HEADS | {
    "sample_size": 4,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": WIDTH,
}


def autoencoder() -> AutoencoderDC:
    """Sana's, here 8 times smaller."""
    widths = (4,) * 4
    return AutoencoderDC(
        latent_channels=CHANNELS,
        attention_head_dim=2,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
    )


def _parts() -> dict[str, Any]:
    torch.manual_seed(0)
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return {
        "transformer": SanaTransformer2DModel(**SIZES, num_layers=2),
        "scheduler": scheduler,
        "vae": autoencoder(),
        "text_encoder": None,
        "tokenizer": None,
    }


def _guided(pipe: Any, fixed: Fixed = lambda images: {}) -> Small:
    own = PIXELS | {"use_resolution_binning": False, "negative_prompt": None}
    return guided(pipe, TEXTS, lambda images: own | fixed(images))


@small("SanaPipeline")
def text_to_image(kind: type) -> Small:
    """From noise alone."""
    return _guided(kind(**_parts()))


@small("SanaPAGPipeline")
def perturbed(kind: type) -> Small:
    """With perturbed attention switched off, for that is a third of the rows."""
    return _guided(kind(**_parts()), lambda images: {"pag_scale": 0.0})


@small("SanaControlNetPipeline")
def controlnet(kind: type) -> Small:
    """The ControlNet gets both halves; its residuals go to all blocks but the first."""
    parts = _parts()
    control = SanaControlNetModel(**SIZES, num_layers=1)
    return _guided(
        kind(**parts, controlnet=control), lambda images: {"control_image": pictures(images)}
    )
