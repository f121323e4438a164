"""Variants of Stable Diffusion 1 that diffusers keeps though they are deprecated."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMParallelScheduler
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder

from tools.pipelines.parts.flow_image import guided
from tools.pipelines.parts.unet import (
    SETTINGS,
    SIDE,
    TEXT,
    TOKENS,
    WIDTH,
    build,
    conditioned,
    fixed,
    holes,
    looked_at,
    networks,
    pictures,
    readers,
    spoken,
    vision_config,
)
from tools.pipelines.small import STEPS, Small, rows, small

LATENTS = SIDE // 8
BOXES = {"gligen_phrases": ["a star", "a ring"], "gligen_boxes": [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]}


@small("StableDiffusionAttendAndExcitePipeline")
def attend_and_excite(kind: type) -> Small:
    """Before each step the UNet looks at every image's conditional rows alone, with gradients."""

    def attended(images: int) -> dict[str, Any]:
        return {"prompt": None, "token_indices": [[1, 2]] * images, "attn_res": (4, 4)}

    return guided(build(kind, **networks()), TEXT, attended)


@small("StableDiffusionSAGPipeline")
def self_attention(kind: type) -> Small:
    """After each guided evaluation, one of blurred latents: where is read off its attention."""
    return guided(build(kind, **networks()), TEXT, fixed(kind))


def _grounded(kind: str) -> dict[str, Any]:
    """With attention to boxes, whose gates are wide open: a new network has them shut."""
    parts = networks(attention_type=kind) | readers()
    gates = [weight for name, weight in parts["unet"].named_parameters() if "alpha" in name]
    for gate in gates:
        torch.nn.init.constant_(gate, 2.0)
    return parts


@small("StableDiffusionGLIGENPipeline")
def boxes(kind: type) -> Small:
    """What is to be in which box is masked out in the unconditional half."""
    half_of_the_steps = BOXES | {"gligen_scheduled_sampling_beta": 0.5}
    return guided(build(kind, **_grounded("gated")), spoken, lambda images: half_of_the_steps)


@small("StableDiffusionGLIGENTextImagePipeline")
def boxes_of_pictures(kind: type) -> Small:
    """Both halves are evaluated with the boxes and without; one half of each is taken."""
    pipe = build(kind, **_grounded("gated-text-image"))
    return guided(pipe, spoken, lambda images: BOXES)


@small("StableDiffusionPanoramaPipeline")
def panorama(kind: type) -> Small:
    """Two windows of a wide picture, each with its own steps of the scheduler.

    With more than one image diffusers mixes their halves up.
    """
    wide = {"height": SIDE, "width": 576}
    return guided(build(kind, **networks()), TEXT, lambda images: wide, batches=(1,))


@small("StableDiffusionParadigmsPipeline")
def parallel(kind: type) -> Small:
    """Several steps are rows of one call; what comes of them does not go through `step`."""
    parts = networks()
    parts["scheduler"] = DDIMParallelScheduler.from_config(parts["scheduler"].config)
    return guided(build(kind, **parts), TEXT, fixed(kind))


@small("StableDiffusionPix2PixZeroPipeline")
def edited_attention(kind: type) -> Small:
    """A first loop keeps the attention of both halves; a second one calls the UNet twice a step."""

    def moved(images: int) -> dict[str, Any]:
        return {
            "source_embeds": rows(2, TOKENS, WIDTH, seed=7),
            "target_embeds": rows(2, TOKENS, WIDTH, seed=8),
        }

    return guided(build(kind, **networks()), TEXT, moved, batches=(1,))


@small("StableDiffusionDiffEditPipeline")
def edited_part(kind: type) -> Small:
    """After each step, what stays is put back from the latents of an earlier inversion."""
    iterations = int(STEPS * SETTINGS["strength"])

    def inverted(images: int) -> dict[str, Any]:
        return {
            "mask_image": holes(images, LATENTS),
            "image_latents": rows(images, iterations, 4, LATENTS, LATENTS, seed=7),
            "inpaint_strength": SETTINGS["strength"],
        }

    return guided(build(kind, **networks()), TEXT, inverted)


@small("StableDiffusionLDM3DPipeline")
def with_depth(kind: type) -> Small:
    """It decodes a picture and its depths, and does not stop at latents."""
    parts = networks()
    parts["vae"] = AutoencoderKL(
        in_channels=6,
        out_channels=6,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
    )
    return guided(build(kind, **parts), TEXT, lambda images: {"output_type": "np"})


@small("StableDiffusionPipelineSafe")
def safe(kind: type) -> Small:
    """Its third prediction, of what is unsafe, is switched off; it does not stop at latents."""
    settings = {"sld_guidance_scale": 0.0, "output_type": "np"}
    return guided(build(kind, **networks(), **readers()), spoken, lambda images: settings)


@small("SemanticStableDiffusionPipeline")
def semantic(kind: type) -> Small:
    """Without edits, each of which would be one more prediction."""
    return guided(build(kind, **networks(), **readers()), spoken, fixed(kind))


@small("CycleDiffusionPipeline")
def cycle(kind: type) -> Small:
    """Each half has two rows: of the source and of what it becomes. It takes one image."""

    def of_a_source(images: int) -> dict[str, Any]:
        return {
            "source_prompt": spoken(images, seed=2)["prompt"],
            "image": pictures(images),
            "strength": SETTINGS["strength"],
        }

    pipe = build(kind, **networks(), **readers())
    return conditioned(pipe, spoken, of_a_source, batches=(1,))


@small("PaintByExamplePipeline")
def example(kind: type) -> Small:
    """An example stands for the text; the unconditional half has a learnt embedding."""
    parts = networks(in_channels=9)
    encoder = PaintByExampleImageEncoder(vision_config())
    return conditioned(
        build(kind, **parts, image_encoder=encoder),
        lambda images, seed: {"example_image": looked_at(images, seed)},
        lambda images: {"image": pictures(images, seed=6), "mask_image": holes(images)},
    )
