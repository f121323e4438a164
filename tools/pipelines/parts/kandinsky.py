"""Tiny parts of Kandinsky 2 and of unCLIP: priors of picture embeddings and what decodes them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import PriorTransformer, UnCLIPScheduler, UNet2DConditionModel, VQModel

from sdbench.models.mini_sd.networks import TOKENS
from tools.pipelines.parts.flow_image import Fixed, Texts, ready, steps
from tools.pipelines.parts.unet import WIDTH, build, readers, vision
from tools.pipelines.small import SCALE, STEPS, Small, rows

SIDE = 16
"""Of a picture in pixels: its latents are 8 x 8."""
SIZE = {"height": SIDE, "width": SIDE}
SIMPLE: dict[str, Any] = {
    "sample_size": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "resnet_time_scale_shift": "scale_shift",
}
"""Of a UNet whose attention takes the text beside its own tokens."""


def simple_unet(**changes: Any) -> UNet2DConditionModel:
    """A UNet that predicts a mean and a variance."""
    return UNet2DConditionModel(**SIMPLE | {"in_channels": 4, "out_channels": 8} | changes)


def movq() -> VQModel:
    """The autoencoder of all Kandinsky 2: 2 times smaller."""
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=4,
        num_vq_embeddings=8,
        norm_num_groups=2,
    )


def prior_network() -> PriorTransformer:
    """From a text to the embedding of a picture."""
    return PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=1,
        embedding_dim=WIDTH,
        num_embeddings=TOKENS,
    )


def prior_scheduler() -> UnCLIPScheduler:
    """It predicts embeddings themselves, and draws noise in every step but the last."""
    return UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
    )


def prior_parts() -> dict[str, Any]:
    """What a prior pipeline has."""
    torch.manual_seed(0)
    return {
        "prior": prior_network(),
        "image_encoder": vision(),
        "scheduler": prior_scheduler(),
        **readers(projection=True),
    }


def combined(kind: type, decoder: dict[str, Any]) -> Any:
    """A pipeline of a prior and a decoder."""
    prior = {f"prior_{name}": part for name, part in prior_parts().items()}
    return build(kind, **prior, **decoder)


def one_after_the_other(pipe: Any, texts: Texts, own: Fixed) -> Small:
    """A pipeline whose prior is guided in a loop of its own before the decoder is in another."""
    scales = {"prior_guidance_scale": SCALE, "guidance_scale": SCALE}

    def call(images: int) -> dict[str, Any]:
        both = steps(images) | {"prior_num_inference_steps": STEPS} | scales
        return both | texts(images, 1) | own(images)

    return Small(
        ready(pipe),
        call,
        off=lambda images: dict.fromkeys(scales, 1.0),
        another=lambda images: texts(images, 3),
    )


def embedded(images: int, seed: int) -> dict[str, Any]:
    """Embeddings of pictures, as a prior makes them."""
    return {"image_embeds": rows(images, WIDTH, seed=seed)}


def decoded(pipe: Any, texts: Texts, own: Fixed) -> Small:
    """A decoder, whose unconditional half has a picture's embedding, too."""

    def call(images: int) -> dict[str, Any]:
        negative = {"negative_image_embeds": rows(images, WIDTH, seed=2)}
        return steps(images) | {"guidance_scale": SCALE} | negative | texts(images, 1) | own(images)

    return Small(
        ready(pipe),
        call,
        off=lambda images: {"guidance_scale": 1.0},
        another=lambda images: texts(images, 3),
    )


def masked(images: int) -> dict[str, Any]:
    """A picture whose right half is to be painted."""
    mask = torch.zeros(images, 1, SIDE, SIDE)
    mask[..., SIDE // 2 :] = 1.0
    return SIZE | {"image": rows(images, 3, SIDE, SIDE, seed=5).tanh(), "mask_image": mask}


def begun(images: int) -> dict[str, Any]:
    """A picture to begin with: 3 of 4 steps."""
    return SIZE | {"image": rows(images, 3, SIDE, SIDE, seed=5).sigmoid(), "strength": 0.75}
