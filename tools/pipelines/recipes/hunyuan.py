"""HunyuanDiT, both halves in one call, and HunyuanImage, whose guidance is a guider's."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AdaptiveProjectedMixGuidance,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    HunyuanImageTransformer2DModel,
)

from tools.pipelines.parts.flow_image import (
    CHANNELS,
    HEADS,
    PIXELS,
    TOKENS,
    WIDTH,
    Fixed,
    both,
    embeddings,
    guided,
    pictures,
    ready,
    steps,
    vae,
)
from tools.pipelines.small import SCALE, Small, rows, small

DIT_TEXTS = embeddings(
    "prompt_attention_mask",
    "prompt_attention_mask_2",
    prompt_embeds=(TOKENS, WIDTH),
    prompt_embeds_2=(TOKENS, WIDTH),
)
DIT_SIZES = HEADS | {
    "sample_size": 8,
    "in_channels": CHANNELS,
    "patch_size": 2,
    "hidden_size": 16,
    "cross_attention_dim": WIDTH,
    "cross_attention_dim_t5": WIDTH,
    "pooled_projection_dim": WIDTH,
    "text_len": TOKENS,
    "text_len_t5": TOKENS,
}
LAYERS = 4
"""The fewest that take a residual of a ControlNet."""


def _dit_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    absent = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    return dict.fromkeys(absent) | {
        "transformer": HunyuanDiT2DModel(**DIT_SIZES, num_layers=LAYERS),
        "scheduler": DDPMScheduler(prediction_type="v_prediction", clip_sample=False),
        "vae": vae(),
        "requires_safety_checker": False,
    }


def _dit(pipe: Any, fixed: Fixed = lambda images: {}) -> Small:
    own = PIXELS | {"use_resolution_binning": False}
    return guided(pipe, DIT_TEXTS, lambda images: own | fixed(images))


@small("HunyuanDiTPipeline")
def dit(kind: type) -> Small:
    """Two texts, rotary embeddings as long as the rows, and a scheduler that draws noise."""
    return _dit(kind(**_dit_parts()))


@small("HunyuanDiTPAGPipeline")
def perturbed(kind: type) -> Small:
    """With perturbed attention switched off, for that is a third of the rows."""
    pipe = kind(**_dit_parts(), pag_applied_layers="blocks.0")
    return _dit(pipe, lambda images: {"pag_scale": 0.0})


@small("HunyuanDiTControlNetPipeline")
def controlnet(kind: type) -> Small:
    """The ControlNet gets both halves."""
    parts = _dit_parts()
    control = HunyuanDiT2DControlNetModel(**DIT_SIZES, transformer_num_layers=LAYERS)
    return _dit(
        kind(**parts, controlnet=control), lambda images: {"control_image": pictures(images)}
    )


IMAGE_SIZES = HEADS | {
    "out_channels": CHANNELS,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": WIDTH,
}
IMAGE_TEXTS = embeddings(
    "prompt_embeds_mask",
    "prompt_embeds_mask_2",
    prompt_embeds=(TOKENS, WIDTH),
    prompt_embeds_2=(TOKENS, WIDTH),
)


@small("HunyuanImagePipeline")
def image(kind: type) -> Small:
    """Two calls a step, the conditional one first.

    A second text, here one that the denoiser does not read, decides which of two guiders it is.
    """
    torch.manual_seed(0)
    transformer = HunyuanImageTransformer2DModel(
        **IMAGE_SIZES, in_channels=CHANNELS, rope_axes_dim=(4, 4)
    )
    pipe = kind(
        **dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=AdaptiveProjectedMixGuidance(enabled=False),
        ocr_guider=AdaptiveProjectedMixGuidance(guidance_scale=SCALE),
    )
    size = {"height": 128, "width": 128}
    return Small(
        ready(pipe),
        call=lambda images: steps(images) | both(IMAGE_TEXTS, images) | size,
        off=lambda images: {"prompt_embeds_2": torch.zeros(images, TOKENS, WIDTH)},
        another=lambda images: IMAGE_TEXTS(images, 3),
    )


REFINER_TEXTS = embeddings("prompt_embeds_mask", prompt_embeds=(TOKENS, WIDTH))


def _given(images: int) -> dict[str, Any]:
    """Latents of pictures to refine, as videos of one frame."""
    latents = rows(images, CHANNELS, 1, 4, 4, seed=5)
    return {"image": latents, "height": 64, "width": 64}


@small("HunyuanImageRefinerPipeline")
def refiner(kind: type) -> Small:
    """Published as a distilled model; a guider of one's own guides it by two calls a step.

    No argument of a call switches a guider off.
    """
    torch.manual_seed(0)
    transformer = HunyuanImageTransformer2DModel(
        **IMAGE_SIZES,
        in_channels=2 * CHANNELS,
        patch_size=(1, 1, 1),
        rope_axes_dim=(4, 2, 2),
        guidance_embeds=True,
    )
    pipe = kind(
        **dict.fromkeys(("vae", "text_encoder", "tokenizer")),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0),
        guider=AdaptiveProjectedMixGuidance(guidance_scale=SCALE),
    )
    return Small(
        ready(pipe),
        call=lambda images: steps(images) | both(REFINER_TEXTS, images) | _given(images),
        off=lambda images: {},
        another=lambda images: REFINER_TEXTS(images, 3),
    )
