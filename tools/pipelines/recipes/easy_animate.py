"""EasyAnimate: one call of both halves; what it is given stands in channels of its own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLMagvit,
    EasyAnimateTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)

from tools.pipelines.parts import video
from tools.pipelines.small import Small, small

CHANNELS = 4
"""Of the latents."""


def _guided(kind: type, given: int, **more: Any) -> Small:
    """`given` are the channels besides the latents; `more` are functions of the number of images.

    The denoiser gets no noise besides: it would be torch's own, another in each call.
    """
    torch.manual_seed(0)
    denoiser = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=CHANNELS + given,
        out_channels=CHANNELS,
        patch_size=2,
        num_layers=1,
        mmdit_layers=1,
        time_embed_dim=4,
        text_embed_dim=video.WIDTH,
        resize_inpaint_mask_directly=False,
        add_noise_in_inpaint_model=False,
    )
    autoencoder = AutoencoderKLMagvit(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    pipe = kind(
        vae=autoencoder.eval(),
        text_encoder=None,
        tokenizer=None,
        transformer=denoiser.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    return video.each(video.by_masked_embeddings(pipe, **video.VIDEO), **more)


def _video(images: int) -> torch.Tensor:
    """Videos with channels before frames."""
    return video.clips(images).transpose(1, 2)


def _left_half(images: int) -> torch.Tensor:
    """What to paint, 255 within."""
    mask = torch.zeros(images, 1, video.FRAMES, video.SIDE, video.SIDE)
    mask[..., : video.SIDE // 2] = 255
    return mask


@small("EasyAnimatePipeline")
def text_to_video(kind: type) -> Small:
    """The plain one."""
    return _guided(kind, given=0)


@small("EasyAnimateControlPipeline")
def control(kind: type) -> Small:
    """A video that controls, and room for a picture."""
    return _guided(kind, given=2 * CHANNELS, control_video=_video)


@small("EasyAnimateInpaintPipeline")
def inpaint(kind: type) -> Small:
    """A video with its left half masked."""
    return _guided(kind, given=2 * CHANNELS, video=_video, mask_video=_left_half)
