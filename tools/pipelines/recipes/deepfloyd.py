"""DeepFloyd IF: pixels instead of latents, and a variance that the UNet predicts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from tools.pipelines.parts.flow_image import Fixed, guided
from tools.pipelines.parts.kandinsky import SIMPLE
from tools.pipelines.parts.unet import TEXT, WIDTH, build, holes, pictures
from tools.pipelines.small import Small, small

SIDE = 8
"""Of a picture in pixels."""
PIXELS = {"height": SIDE, "width": SIDE, "output_type": "pt"}


def _unet(**changes: Any) -> UNet2DConditionModel:
    usual = {
        "in_channels": 3,
        "out_channels": 6,
        "cross_attention_dim": 32,  # its norm has 32 groups
        "cross_attention_norm": "group_norm",
        "encoder_hid_dim": WIDTH,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "act_fn": "gelu",
    }
    return UNet2DConditionModel(**SIMPLE | usual | changes)


def _scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True
    )


def _first(kind: type, own: Fixed) -> Small:
    """The stage that makes a picture."""
    torch.manual_seed(0)
    return guided(build(kind, unet=_unet(), scheduler=_scheduler()), TEXT, own)


def _second(kind: type, own: Fixed) -> Small:
    """The stage that makes it larger: its UNet gets the small picture, and how noisy that is."""
    torch.manual_seed(0)
    pipe = build(
        kind,
        unet=_unet(in_channels=6, class_embed_type="timestep"),
        scheduler=_scheduler(),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )
    return guided(pipe, TEXT, own)


def _picture(images: int, seed: int = 5, side: int = SIDE) -> torch.Tensor:
    """With values between -1 and 1."""
    return 2 * pictures(images, seed, side) - 1


def _begun(images: int) -> dict[str, Any]:
    """A picture to begin with: 3 of 4 steps."""
    return {"image": _picture(images), "strength": 0.75, "output_type": "pt"}


def _enlarged(images: int) -> dict[str, Any]:
    """A small picture, and a large one to begin with."""
    small_one = {"image": _picture(images, seed=6, side=SIDE // 2)}
    return _begun(images) | {"original_image": _picture(images)} | small_one


def _hole(images: int) -> dict[str, Any]:
    return {"mask_image": holes(images, SIDE)}


@small("IFPipeline")
def text_to_image(kind: type) -> Small:
    """From text alone."""
    return _first(kind, lambda images: PIXELS)


@small("IFImg2ImgPipeline")
def image_to_image(kind: type) -> Small:
    """A loop without the first of the scheduler's steps."""
    return _first(kind, _begun)


@small("IFInpaintingPipeline")
def inpaint(kind: type) -> Small:
    """After each step what is known is taken from before it."""
    return _first(kind, lambda images: _begun(images) | _hole(images))


@small("IFSuperResolutionPipeline")
def larger(kind: type) -> Small:
    """The small picture is noised once."""
    return _second(kind, lambda images: PIXELS | {"image": _enlarged(images)["image"]})


@small("IFImg2ImgSuperResolutionPipeline")
def larger_image_to_image(kind: type) -> Small:
    """The same from a large picture."""
    return _second(kind, _enlarged)


@small("IFInpaintingSuperResolutionPipeline")
def larger_inpaint(kind: type) -> Small:
    """The same with a mask."""
    return _second(kind, lambda images: _enlarged(images) | _hole(images))
