"""Kandinsky 3: one UNet with a text; its scale is the formula's less 1."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, Kandinsky3UNet

from tools.pipelines.parts.flow_image import TOKENS, Fixed, embeddings, guided
from tools.pipelines.parts.kandinsky import begun, movq
from tools.pipelines.parts.unet import WIDTH, build
from tools.pipelines.small import SCALE, Small, small

TEXTS = embeddings("attention_mask", prompt_embeds=(TOKENS, WIDTH))


def _guided(kind: type, own: Fixed) -> Small:
    """`(w + 1) c - w u`, and no guidance at 1, which would be twice the usual one."""
    torch.manual_seed(0)
    pipe = build(kind, unet=_unet(), scheduler=DDPMScheduler(clip_sample=False), movq=movq())
    return guided(pipe, TEXTS, own, scale=SCALE - 1)


def _unet() -> Kandinsky3UNet:
    return Kandinsky3UNet(
        time_embedding_dim=8,
        groups=4,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(16, 16, 16, 16),
        cross_attention_dim=8,
        encoder_hid_dim=WIDTH,
    )


@small("Kandinsky3Pipeline")
def text_to_image(kind: type) -> Small:
    """The size of its latents does not depend on the autoencoder."""
    return _guided(kind, lambda images: {"height": 64, "width": 64})


@small("Kandinsky3Img2ImgPipeline")
def image_to_image(kind: type) -> Small:
    """A loop without the first of the scheduler's steps."""

    def own(images: int) -> dict[str, Any]:
        picture = begun(images)
        return {"image": picture["image"], "strength": picture["strength"]}

    return _guided(kind, own)
