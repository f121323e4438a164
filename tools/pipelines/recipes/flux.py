"""Flux: two calls a step, the conditional one first, if a true scale is asked for."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
)

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
    painted,
    pictures,
    repainted,
    vae,
)
from tools.pipelines.small import WITHOUT_HALVES, Small, small

WITHOUT_HALVES.update(
    dict.fromkeys(
        (
            "FluxControlPipeline",
            "FluxControlImg2ImgPipeline",
            "FluxControlInpaintPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxControlNetInpaintPipeline",
            "FluxFillPipeline",
        ),
        "guidance is distilled into the weights",
    )
)
WITHOUT_HALVES["FluxPriorReduxPipeline"] = "embeds a picture; it has no denoiser"
WITHOUT_HALVES["VisualClozeGenerationPipeline"] = "guidance is distilled into the weights"
WITHOUT_HALVES["VisualClozePipeline"] = "guidance is distilled into the weights"

TEXTS = embeddings(prompt_embeds=(TOKENS, WIDTH), pooled_prompt_embeds=(WIDTH,))
SIZES = HEADS | {
    "in_channels": 4 * CHANNELS,
    "num_layers": 1,
    "num_single_layers": 1,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "axes_dims_rope": AXES,
}


def _parts() -> dict[str, Any]:
    torch.manual_seed(0)
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return texts | {
        "transformer": FluxTransformer2DModel(**SIZES),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": vae(),
    }


def _guided(pipe: Any, fixed: Fixed) -> Small:
    return guided(pipe, TEXTS, fixed, name="true_cfg_scale")


@small("FluxPipeline")
def text_to_image(kind: type) -> Small:
    """From noise alone."""
    return _guided(kind(**_parts()), lambda images: PIXELS)


@small("FluxImg2ImgPipeline")
def image_to_image(kind: type) -> Small:
    """A loop without the first of the scheduler's steps."""
    return _guided(kind(**_parts()), painted)


@small("FluxInpaintPipeline")
def inpaint(kind: type) -> Small:
    """The same with a mask that the loop applies after each step."""
    return _guided(kind(**_parts()), repainted)


@small("FluxControlNetPipeline")
def controlnet(kind: type) -> Small:
    """One call of the ControlNet for both of the denoiser's."""
    parts = _parts()
    control = FluxControlNetModel(**SIZES)
    return _guided(
        kind(**parts, controlnet=control),
        lambda images: PIXELS | {"control_image": pictures(images)},
    )


def _at_own_size(fixed: Fixed) -> Fixed:
    """The sizes of training are too large for a small pipeline."""
    area = PIXELS["height"] * PIXELS["width"]
    return lambda images: fixed(images) | {"max_area": area, "_auto_resize": False}


@small("FluxKontextPipeline")
def kontext(kind: type) -> Small:
    """The tokens of a picture come after those of the latents."""
    return _guided(
        kind(**_parts()), _at_own_size(lambda images: PIXELS | {"image": pictures(images)})
    )


@small("FluxKontextInpaintPipeline")
def kontext_inpaint(kind: type) -> Small:
    """The same with a mask."""
    return _guided(kind(**_parts()), _at_own_size(repainted))
