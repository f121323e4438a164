"""Qwen-Image: two calls a step, the conditional one first, rescaled to its norm."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
)

from tools.pipelines.parts import image_networks, words
from tools.pipelines.parts.flow_image import (
    AXES,
    CHANNELS,
    HEADS,
    PIXELS,
    TOKENS,
    WIDTH,
    Fixed,
    embeddings,
    guided,
    holes,
    painted,
    photos,
    pictures,
    qwen_vae,
    repainted,
)
from tools.pipelines.parts.shrinker import Shrinker
from tools.pipelines.small import Small, small

TEXTS = embeddings("prompt_embeds_mask", prompt_embeds=(TOKENS, WIDTH))
SIZES = HEADS | {
    "in_channels": 4 * CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": 1,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": AXES,
}


def _parts(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "transformer": QwenImageTransformer2DModel(**SIZES | changes),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": qwen_vae(),
        "text_encoder": None,
        "tokenizer": None,
    }


def _guided(pipe: Any, fixed: Fixed, batches: tuple[int, ...] = (1, 2)) -> Small:
    return guided(pipe, TEXTS, fixed, name="true_cfg_scale", batches=batches)


@small("QwenImagePipeline")
def text_to_image(kind: type) -> Small:
    """From noise alone."""
    return _guided(kind(**_parts()), lambda images: PIXELS)


@small("QwenImageImg2ImgPipeline")
def image_to_image(kind: type) -> Small:
    """A loop without the first of the scheduler's steps."""
    return _guided(kind(**_parts()), painted)


@small("QwenImageInpaintPipeline")
def inpaint(kind: type) -> Small:
    """The same with a mask that the loop applies after each step."""
    return _guided(kind(**_parts()), repainted)


@small("QwenImageControlNetPipeline")
def controlnet(kind: type) -> Small:
    """One call of the ControlNet for both of the denoiser's."""
    parts = _parts()
    control = QwenImageControlNetModel(**SIZES)
    return _guided(
        kind(**parts, controlnet=control),
        lambda images: PIXELS | {"control_image": pictures(images)},
    )


@small("QwenImageControlNetInpaintPipeline")
def controlnet_inpaint(kind: type) -> Small:
    """The ControlNet gets the mask as one more channel of each latent."""
    parts = _parts()
    control = QwenImageControlNetModel(**SIZES, extra_condition_channels=4)
    return _guided(
        kind(**parts, controlnet=control),
        lambda images: PIXELS | {"control_image": pictures(images), "control_mask": holes(images)},
    )


@small("QwenImageEditPipeline")
def edit(kind: type) -> Small:
    """The tokens of a picture come after those of the latents."""
    pipe = kind(**_parts() | {"vae": Shrinker(CHANNELS)}, processor=None)
    return _guided(pipe, lambda images: {"image": photos(images)})


@small("QwenImageEditInpaintPipeline")
def edit_inpaint(kind: type) -> Small:
    """The same with a mask, in a loop without the first of the scheduler's steps."""
    pipe = kind(**_parts() | {"vae": Shrinker(CHANNELS)}, processor=None)
    return _guided(
        pipe,
        lambda images: {"image": photos(images), "mask_image": holes(images), "strength": 0.75},
    )


@small("QwenImageEditPlusPipeline")
def edit_plus(kind: type) -> Small:
    """Several pictures for one image."""
    pipe = kind(**_parts() | {"vae": Shrinker(CHANNELS)}, processor=None)
    return _guided(pipe, lambda images: {"image": photos(2)}, batches=(1,))


@small("QwenImageLayeredPipeline")
def layered(kind: type) -> Small:
    """Layers of an image; a picture with as many channels as the latents would pass for them."""
    channels = 2 * CHANNELS
    parts = _parts(
        in_channels=4 * channels,
        out_channels=channels,
        use_additional_t_cond=True,
        use_layer3d_rope=True,
    )
    parts |= {
        "vae": Shrinker(channels, pixels=4, factor=64),
        "text_encoder": words.Reader(),
        "tokenizer": words.tokenizer(),
    }
    return _guided(
        kind(**parts, processor=None),
        lambda images: {
            "image": photos(images, "RGBA"),
            "layers": 1,
            "output_type": "pt",  # it fails where it should stop at latents
            "prompt": words.prompts(images, 1)["prompt"],
        },
    )


@small("QwenImage21Pipeline")
def version_2_1(kind: type) -> Small:
    """Keys and values of the text are kept from the first step on, apart for each half."""
    torch.manual_seed(0)
    pipe = kind(
        transformer=image_networks.qwen_image_21(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        processor=words.Processor(words.tokenizer("<|image_pad|>")),
    )
    return _guided(pipe, lambda images: {"height": 64, "width": 64})
