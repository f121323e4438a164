"""Z-Image: both halves in one call as a list of images, the conditional one first."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    ZImageControlNetModel,
    ZImageTransformer2DModel,
)
from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

from tools.pipelines.parts.flow_image import (
    CHANNELS,
    PIXELS,
    TOKENS,
    WIDTH,
    Fixed,
    guided,
    holes,
    lists,
    painted,
    photos,
    pictures,
    repainted,
    vae,
)
from tools.pipelines.small import SCALE, Small, rows, small

BLOCKS = {"dim": 16, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}


def _texts_in_parts(images: int, seed: int) -> dict[str, Any]:
    """A list of three embeddings: what stands before, between and after the pictures."""
    drawn = rows(images, 3, TOKENS, WIDTH, seed=10 * seed)
    return {"prompt_embeds": [list(parts) for parts in drawn]}


def _parts(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        **BLOCKS,
        in_channels=CHANNELS,
        n_layers=1,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[256, 32, 32],
        **changes,
    )
    return {
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": vae(),
        "text_encoder": None,
        "tokenizer": None,
    }


def _guided(pipe: Any, fixed: Fixed, texts: Any = lists) -> Small:
    """It computes c + w (c - u), whose w is less by one."""
    return guided(pipe, texts, fixed, scale=SCALE - 1.0, off=0.0)


@small("ZImagePipeline")
def text_to_image(kind: type) -> Small:
    """From noise alone."""
    return _guided(kind(**_parts()), lambda images: PIXELS)


@small("ZImageImg2ImgPipeline")
def image_to_image(kind: type) -> Small:
    """A loop without the first of the scheduler's steps."""
    return _guided(kind(**_parts()), painted)


@small("ZImageInpaintPipeline")
def inpaint(kind: type) -> Small:
    """The same with a mask that the loop applies after each step."""
    return _guided(kind(**_parts()), repainted)


def _control(channels: int) -> ZImageControlNetModel:
    return ZImageControlNetModel(
        **BLOCKS,
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=channels,
    )


@small("ZImageControlNetPipeline")
def controlnet(kind: type) -> Small:
    """The ControlNet shares networks with the denoiser."""
    parts = _parts()
    return _guided(
        kind(**parts, controlnet=_control(CHANNELS)),
        lambda images: PIXELS | {"control_image": pictures(images)},
    )


@small("ZImageControlNetInpaintPipeline")
def controlnet_inpaint(kind: type) -> Small:
    """The ControlNet gets the mask and what it leaves as more channels."""
    parts = _parts()
    return _guided(
        kind(**parts, controlnet=_control(2 * CHANNELS + 1)),
        lambda images: (
            PIXELS
            | {
                "control_image": pictures(images),
                "image": pictures(images, seed=6),
                "mask_image": holes(images),
            }
        ),
    )


def _eyes() -> dict[str, Any]:
    """An encoder of pictures, and its processor."""
    config = Siglip2VisionConfig(
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_patches=16,
        patch_size=16,
    )
    return {
        "siglip": Siglip2VisionModel(config),
        "siglip_processor": Siglip2ImageProcessor(patch_size=16, max_num_patches=16),
    }


@small("ZImageOmniPipeline")
def omni(kind: type) -> Small:
    """Lists within the lists: each image's text is in parts, and it sees other pictures."""
    parts = _parts(siglip_feat_dim=WIDTH)
    parts["vae"] = parts["vae"].bfloat16()  # it gives the autoencoder no other
    return _guided(
        kind(**parts, **_eyes()),
        lambda images: PIXELS | {"image": photos(1, side=64)},
        _texts_in_parts,
    )
