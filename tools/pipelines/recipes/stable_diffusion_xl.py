"""Stable Diffusion XL: a pooled embedding and sizes go to the UNet beside the text."""

from __future__ import annotations

from typing import Any

from diffusers import T2IAdapter

from tools.pipelines.parts.flow_image import guided
from tools.pipelines.parts.unet import POOLED, TEXT, build, fixed, networks, xl_networks
from tools.pipelines.small import WITHOUT_HALVES, Small, small

WITHOUT_HALVES |= {
    "StableDiffusionXLInstructPix2PixPipeline": "three predictions: of text and picture, of the "
    "picture, of neither",
    "LEditsPPPipelineStableDiffusionXL": "one prediction for each edit: it adds masked directions "
    "of edits to an inverted picture",
}
CROSS_FIRST: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
"""What an adapter adds fits a block that has not made the latents smaller yet."""


@small(
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLPAGPipeline",
    "StableDiffusionXLPAGImg2ImgPipeline",
    "StableDiffusionXLPAGInpaintPipeline",
)
def usual(kind: type) -> Small:
    """From text, and a picture where the class takes one."""
    return guided(build(kind, **xl_networks()), POOLED, fixed(kind))


@small("StableDiffusionXLInpaintPipeline")
def inpaint(kind: type) -> Small:
    """The UNet gets the mask and the masked picture as further channels."""
    return guided(build(kind, **xl_networks(in_channels=9)), POOLED, fixed(kind))


def _adapter() -> T2IAdapter:
    return T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=8)


@small("StableDiffusionAdapterPipeline")
def adapter(kind: type) -> Small:
    """The UNet gets a list of features of a picture, which it empties."""
    pipe = build(kind, **networks(**CROSS_FIRST), adapter=_adapter())
    return guided(pipe, TEXT, fixed(kind))


@small("StableDiffusionXLAdapterPipeline")
def xl_adapter(kind: type) -> Small:
    """The same for the larger one."""
    pipe = build(kind, **xl_networks(**CROSS_FIRST), adapter=_adapter())
    return guided(pipe, POOLED, fixed(kind))
