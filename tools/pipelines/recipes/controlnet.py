"""ControlNets of UNets: they get both halves, and lists of their residuals go to the UNet."""

from __future__ import annotations

from typing import Any

from diffusers import ControlNetUnionModel, ControlNetXSAdapter

from tools.pipelines.parts.flow_image import guided
from tools.pipelines.parts.unet import (
    BLOCKS,
    CONTROL,
    POOLED,
    TEXT,
    XL_TEXT,
    build,
    control,
    fixed,
    networks,
    xl_networks,
)
from tools.pipelines.small import Small, small


@small(
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionControlNetPAGPipeline",
    "StableDiffusionControlNetPAGInpaintPipeline",
)
def usual(kind: type) -> Small:
    """Stable Diffusion's."""
    return guided(build(kind, **networks(), controlnet=control()), TEXT, fixed(kind))


@small(
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
    "StableDiffusionXLControlNetPAGPipeline",
    "StableDiffusionXLControlNetPAGImg2ImgPipeline",
)
def xl(kind: type) -> Small:
    """Stable Diffusion XL's: the ControlNet gets the pooled text, too."""
    pipe = build(kind, **xl_networks(), controlnet=control(**XL_TEXT))
    return guided(pipe, POOLED, fixed(kind))


@small(
    "StableDiffusionXLControlNetUnionPipeline",
    "StableDiffusionXLControlNetUnionImg2ImgPipeline",
    "StableDiffusionXLControlNetUnionInpaintPipeline",
)
def union(kind: type) -> Small:
    """One ControlNet for several kinds of pictures: it gets lists of them, and their kinds."""
    parts = xl_networks()
    sizes = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8}
    net = ControlNetUnionModel(**BLOCKS, **XL_TEXT, **CONTROL, **sizes, num_control_type=2)
    pipe = build(kind, **parts, controlnet=net)
    return guided(pipe, POOLED, fixed(kind, control_mode=lambda images: 0))


def _fused(parts: dict[str, Any]) -> dict[str, Any]:
    """With an adapter that the pipeline fuses with the UNet."""
    net = ControlNetXSAdapter.from_unet(parts["unet"], size_ratio=0.5, **CONTROL)
    return parts | {"controlnet": net}


@small("StableDiffusionControlNetXSPipeline")
def small_control(kind: type) -> Small:
    """UNet and ControlNet are one network, of two layers a block."""
    return guided(build(kind, **_fused(networks(layers_per_block=2))), TEXT, fixed(kind))


@small("StableDiffusionXLControlNetXSPipeline")
def small_xl_control(kind: type) -> Small:
    """The same for the larger one."""
    return guided(build(kind, **_fused(xl_networks(layers_per_block=2))), POOLED, fixed(kind))
