"""Tiny denoisers of videos whose frames are rows, or become rows, and the videos they are given."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet3DConditionModel, UNetMotionModel

from tools.pipelines.parts.unet import SIDE, WIDTH, pictures

FRAMES = 4
"""Of a video."""
SIZE = {"height": SIDE, "width": SIDE}
MOTION: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
}
"""Of a denoiser with motion modules, and of its ControlNet."""


def motion_unet(**changes: Any) -> UNetMotionModel:
    """A UNet of two levels with motion modules."""
    usual = {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        "use_motion_mid_block": False,
    }
    return UNetMotionModel(**usual | MOTION | changes)


UNET_3D: dict[str, Any] = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
}
"""Of a UNet of two levels whose layers see all frames."""


def unet_3d() -> UNet3DConditionModel:
    """A UNet of two levels whose layers see all frames."""
    return UNet3DConditionModel(**UNET_3D)


def clip(seed: int = 7) -> list[torch.Tensor]:
    """The frames of a video."""
    return list(pictures(FRAMES, seed).unbind())


def clips(images: int) -> list[list[torch.Tensor]]:
    """The frames of several videos."""
    return [clip(seed=7 + image) for image in range(images)]
