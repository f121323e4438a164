"""In place of an autoencoder, for classes that bring every picture to 1024 x 1024 pixels."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn


class Shrinker(ModelMixin, ConfigMixin):
    """One layer that makes a pixel of each square, and one back.

    Its settings are those of several kinds of autoencoder, for pipelines read them.

    Args:
        channels: of the latents.
        pixels: channels of a picture.
        factor: side of a square; by default a picture has 8 x 8 latents.
    """

    @register_to_config
    def __init__(self, channels: int, pixels: int = 3, factor: int = 128) -> None:
        super().__init__()
        self.there = nn.Conv2d(pixels, channels, factor, stride=factor)
        self.back = nn.ConvTranspose2d(channels, pixels, factor, stride=factor)
        levels = factor.bit_length()
        self.temperal_downsample = [False] * (levels - 1)
        self.register_to_config(
            block_out_channels=(1,) * levels,
            latent_channels=channels,
            z_dim=channels,
            latents_mean=[0.0] * channels,
            latents_std=[1.0] * channels,
            shift_factor=0.0,
            scaling_factor=1.0,
            scale_factor_spatial=factor,
            scale_factor_temporal=4,
        )

    def encode(self, picture: torch.Tensor) -> SimpleNamespace:
        """Latents without variance, of pictures or of videos of one frame."""
        latents = self.there(picture[:, :, 0] if picture.ndim == 5 else picture)
        if picture.ndim == 5:
            latents = latents[:, :, None]
        both = torch.cat([latents, torch.full_like(latents, -30.0)], dim=1)
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(both))

    def decode(self, latents: torch.Tensor, **_: bool) -> tuple[torch.Tensor]:
        """Squares of one colour, as a video of one frame."""
        return (self.back(latents[:, :, 0])[:, :, None],)
