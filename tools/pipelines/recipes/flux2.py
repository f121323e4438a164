"""Flux 2: the base of Klein guides by two calls a step, the conditional one first."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
)

from tools.pipelines.parts import image_networks
from tools.pipelines.parts.flow_image import (
    CHANNELS,
    PIXELS,
    TOKENS,
    WIDTH,
    embeddings,
    guided,
    photos,
    repainted,
    without_noise,
)
from tools.pipelines.small import WITHOUT_HALVES, Small, small

WITHOUT_HALVES["Flux2Pipeline"] = "guidance is distilled into the weights"
WITHOUT_HALVES["Flux2KleinKVPipeline"] = "a distilled model without guidance"

TEXTS = embeddings(prompt_embeds=(TOKENS, WIDTH))


def autoencoder() -> AutoencoderKLFlux2:
    """The autoencoder of Flux 2, 8 times smaller."""
    return without_noise(
        AutoencoderKLFlux2(
            block_out_channels=(4,) * 4,
            layers_per_block=1,
            latent_channels=CHANNELS,
            norm_num_groups=2,
        )
    )


def _parts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "transformer": image_networks.flux_2(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": autoencoder(),
        "text_encoder": None,
        "tokenizer": None,
    }


@small("Flux2KleinPipeline")
def klein(kind: type) -> Small:
    """All images see the same picture, whose tokens come after those of the latents."""
    return guided(kind(**_parts()), TEXTS, lambda images: PIXELS | {"image": photos(1, side=64)})


@small("Flux2KleinInpaintPipeline")
def klein_inpaint(kind: type) -> Small:
    """A loop without the first of the scheduler's steps, and a mask."""
    return guided(kind(**_parts()), TEXTS, repainted)
