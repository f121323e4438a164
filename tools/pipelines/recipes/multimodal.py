"""Versatile Diffusion and UniDiffuser: one network for texts and pictures."""

from __future__ import annotations

from typing import Any

from diffusers import UniDiffuserModel, UniDiffuserTextDecoder
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import (
    UNetFlatConditionModel,
)
from transformers import CLIPImageProcessor

from tools.pipelines.parts.flow_image import guided
from tools.pipelines.parts.unet import (
    BLOCKS,
    LOOKED_AT,
    TEXT,
    TOKENS,
    WIDTH,
    build,
    conditioned,
    networks,
    photos,
    readers,
    spoken,
    vision,
)
from tools.pipelines.small import WITHOUT_HALVES, Small, small

WITHOUT_HALVES["VersatileDiffusionPipeline"] = "it cannot be called: its methods make the others"
TOKENS_OF_A_PICTURE = 257
"""Which one of the classes counts on: those of 16 x 16 patches and one more."""


def _versatile(*, text: bool = False, picture: bool = False) -> dict[str, Any]:
    """With what reads texts, what reads pictures, or both."""
    parts = networks()
    parts["image_unet"] = parts.pop("unet")
    if text:
        sizes = BLOCKS | {
            "down_block_types": ("DownBlockFlat", "CrossAttnDownBlockFlat"),
            "up_block_types": ("CrossAttnUpBlockFlat", "UpBlockFlat"),
        }
        parts |= readers(projection=True) | {"text_unet": UNetFlatConditionModel(**sizes)}
    if picture:
        side = {"height": LOOKED_AT, "width": LOOKED_AT}
        processor = CLIPImageProcessor(size={"shortest_edge": LOOKED_AT}, crop_size=side)
        parts |= {"image_encoder": vision(patch=1), "image_feature_extractor": processor}
    return parts


@small("VersatileDiffusionTextToImagePipeline")
def from_text(kind: type) -> Small:
    """The UNet of pictures has taken the attention of the UNet of texts."""
    return guided(build(kind, **_versatile(text=True)), spoken, lambda images: {})


def _shown(images: int, seed: int) -> dict[str, Any]:
    return {"image": photos(images, seed, LOOKED_AT)}


@small("VersatileDiffusionImageVariationPipeline")
def from_picture(kind: type) -> Small:
    """A grey picture stands for the negative one."""
    return conditioned(build(kind, **_versatile(picture=True)), _shown, lambda images: {})


@small("VersatileDiffusionDualGuidedPipeline")
def from_both(kind: type) -> Small:
    """Text and picture one after the other in one embedding."""
    pipe = build(kind, **_versatile(text=True, picture=True))
    return conditioned(pipe, spoken, lambda images: _shown(images, seed=5))


@small("UniDiffuserPipeline")
def unidiffuser(kind: type) -> Small:
    """Two calls, the conditional one first; noise stands for the negative text at each step.

    The network returns a picture's latents, its embedding, and a text's.
    """
    parts = networks() | {"text_encoder": readers()["text_encoder"], "image_encoder": vision()}
    parts["text_decoder"] = UniDiffuserTextDecoder(
        prefix_length=TOKENS, prefix_inner_dim=WIDTH, n_embd=WIDTH, n_layer=1, n_head=2
    )
    parts["unet"] = UniDiffuserModel(
        text_dim=WIDTH,
        clip_img_dim=WIDTH,
        num_text_tokens=TOKENS,
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
    )
    return guided(build(kind, **parts), TEXT, lambda images: {})
