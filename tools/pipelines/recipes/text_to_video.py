"""Text to video with a UNet: the scheduler gets frames as rows, or the denoiser does."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    I2VGenXLUNet,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor

from tools.pipelines.parts.flow_image import guided, ready, steps
from tools.pipelines.parts.motion import FRAMES, SIZE, UNET_3D, clip, unet_3d
from tools.pipelines.parts.unet import (
    LOOKED_AT,
    POOLED,
    TEXT,
    WIDTH,
    build,
    looked_at,
    networks,
    photos,
    readers,
    spoken,
    vision,
    xl_networks,
)
from tools.pipelines.small import SCALE, Small, generators, small

VIDEO = SIZE | {"num_frames": FRAMES}
ZERO = SIZE | {"video_length": FRAMES, "t0": 1, "t1": 2}
"""A loop of the first frame, one of a step back, and one of all frames from there on."""


def _one_generator(images: int) -> dict[str, Any]:
    return {"generator": generators(images)[0]}


@small("TextToVideoSDPipeline")
def text_to_video(kind: type) -> Small:
    """The pipeline makes frames to rows before the scheduler's step."""
    pipe = build(kind, **networks() | {"unet": unet_3d()})
    return guided(pipe, TEXT, lambda images: VIDEO)


@small("VideoToVideoSDPipeline")
def video_to_video(kind: type) -> Small:
    """The same without the first of the scheduler's steps.

    It takes one video, and no list of generators: of each it would noise the first frame only.
    """
    pipe = build(kind, **networks() | {"unet": unet_3d()})
    given = {"video": clip(), "strength": 0.75}
    return guided(pipe, TEXT, lambda images: given | _one_generator(images), batches=(1,))


@small("TextToVideoZeroPipeline")
def zero(kind: type) -> Small:
    """Three loops; in the last one each frame's attention is to its half's first frame.

    It takes one prompt, and fails without guidance: it joins the texts of both halves, of which
    one is missing then. So nothing can be switched off.
    """

    def texts(images: int, seed: int) -> dict[str, Any]:
        return {"prompt": spoken(images, seed)["prompt"][0]}

    made = guided(
        build(kind, **networks(), **readers()),
        texts,
        lambda images: ZERO | _one_generator(images),
        batches=(1,),
    )
    return Small(made.pipe, made.call, lambda images: {}, made.another, made.batches)


@small("TextToVideoZeroSDXLPipeline")
def zero_xl(kind: type) -> Small:
    """The same for embeddings of prompts."""
    pipe = build(kind, **xl_networks())
    own = ZERO | {"prompt": None}
    return guided(pipe, POOLED, lambda images: own | _one_generator(images), batches=(1,))


@small("I2VGenXLPipeline")
def i2vgen_xl(kind: type) -> Small:
    """A picture goes with the text; its embedding is zero in the unconditional half."""
    parts = networks()
    side = {"height": LOOKED_AT, "width": LOOKED_AT}
    pipe = build(
        kind,
        **parts | {"unet": _i2vgen_unet()},
        image_encoder=vision(),
        feature_extractor=CLIPImageProcessor(crop_size=side, size={"shortest_edge": LOOKED_AT}),
    )
    return guided(pipe, TEXT, lambda images: VIDEO | {"image": photos(images)})


def _i2vgen_unet() -> I2VGenXLUNet:
    return I2VGenXLUNet(**UNET_3D)


@small("StableVideoDiffusionPipeline")
def stable_video(kind: type) -> Small:
    """A picture alone is the condition; the scale could differ from frame to frame."""
    torch.manual_seed(0)
    pipe = build(
        kind,
        vae=_video_vae(),
        unet=_spatio_temporal_unet(),
        image_encoder=vision(),
        feature_extractor=CLIPImageProcessor(),
        scheduler=EulerDiscreteScheduler(
            prediction_type="v_prediction",
            timestep_type="continuous",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
        ),
    )
    size = {"height": LOOKED_AT, "width": LOOKED_AT, "num_frames": FRAMES}
    scales = {"min_guidance_scale": SCALE, "max_guidance_scale": SCALE}
    return Small(
        ready(pipe),
        lambda images: steps(images) | size | scales | {"image": looked_at(images)},
        off=lambda images: dict.fromkeys(scales, 1.0),
        another=lambda images: {"image": looked_at(images, seed=6)},
    )


def _video_vae() -> AutoencoderKLTemporalDecoder:
    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        layers_per_block=1,
    )


def _spatio_temporal_unet() -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 32),
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        num_frames=FRAMES,
    )
