"""Kandinsky 2.2: the decoder's UNet sees the picture's embedding alone, without a text."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler

from tools.pipelines.parts.kandinsky import (
    SIZE,
    begun,
    combined,
    decoded,
    embedded,
    masked,
    movq,
    one_after_the_other,
    prior_parts,
    simple_unet,
)
from tools.pipelines.parts.unet import WIDTH, build, conditioned, spoken
from tools.pipelines.small import Small, rows, small


def _decoder(hint: bool = False, **changes: Any) -> dict[str, Any]:
    """The scheduler takes the variance that the UNet predicts, and draws noise."""
    torch.manual_seed(0)
    kinds = {
        "addition_embed_type": "image_hint" if hint else "image",
        "encoder_hid_dim_type": "image_proj",
    }
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, clip_sample=False, variance_type="learned_range"
    )
    return {
        "unet": simple_unet(encoder_hid_dim=WIDTH, **kinds, **changes),
        "scheduler": scheduler,
        "movq": movq(),
    }


def _hint(images: int) -> dict[str, Any]:
    """A picture 8 times as large as the latents, which the UNet itself makes small."""
    return {"hint": rows(images, 3, 64, 64, seed=6), "output_type": "pt"}


@small("KandinskyV22Pipeline")
def text_to_image(kind: type) -> Small:
    """From the embedding alone."""
    return decoded(kind(**_decoder()), embedded, lambda images: SIZE)


@small("KandinskyV22Img2ImgPipeline")
def image_to_image(kind: type) -> Small:
    """A loop without the first of the scheduler's steps."""
    return decoded(kind(**_decoder()), embedded, begun)


@small("KandinskyV22InpaintPipeline")
def inpaint(kind: type) -> Small:
    """What is known is put back after each step: of the first picture, into all of them."""
    return decoded(kind(**_decoder(in_channels=9)), embedded, masked)


@small("KandinskyV22ControlnetPipeline")
def controlnet(kind: type) -> Small:
    """A hint goes with the embedding. It does not stop at latents."""
    pipe = kind(**_decoder(hint=True, in_channels=8))
    return decoded(pipe, embedded, lambda images: SIZE | _hint(images))


@small("KandinskyV22ControlnetImg2ImgPipeline")
def controlnet_image_to_image(kind: type) -> Small:
    """The same from a picture."""
    pipe = kind(**_decoder(hint=True, in_channels=8))
    return decoded(pipe, embedded, lambda images: begun(images) | _hint(images))


@small("KandinskyV22PriorEmb2EmbPipeline")
def embedding_to_embedding(kind: type) -> Small:
    """A prior that begins with an embedding: 3 of 4 steps."""
    own = {"strength": 0.75, "output_type": "pt"}
    return conditioned(
        build(kind, **prior_parts()),
        spoken,
        lambda images: own | {"image": rows(images, WIDTH, seed=5)},
    )


@small("KandinskyV22CombinedPipeline")
def both(kind: type) -> Small:
    """A loop of the prior and one of the decoder."""
    return one_after_the_other(combined(kind, _decoder()), spoken, lambda images: SIZE)


@small("KandinskyV22Img2ImgCombinedPipeline")
def both_image_to_image(kind: type) -> Small:
    """The decoder's loop is shorter than its scheduler's."""
    return one_after_the_other(combined(kind, _decoder()), spoken, begun)


@small("KandinskyV22InpaintCombinedPipeline")
def both_inpaint(kind: type) -> Small:
    """The decoder gets a masked picture."""
    return one_after_the_other(combined(kind, _decoder(in_channels=9)), spoken, masked)
