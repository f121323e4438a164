"""The networks of emoji-sd, with random weights: Stable Diffusion's classes at 1 % of the size."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from sdbench.models.emoji_sd import catalogue
from sdbench.models.mini_sd import networks as mini_sd
from sdbench.models.training import text_encoder as training
from sdbench.models.training import tokenizer as vocabulary

WIDTH = 128  # of the text encoder
TOKENS = 24
LATENT = 16  # side of the latents
CHANNELS = 6  # of the latents


def autoencoder() -> AutoencoderKL:
    """An autoencoder of 0.7 M parameters: 64 x 64 x 3 to 16 x 16 x 6.

    Drawings have finer detail than mini-sd's scenes, hence six channels. One of 8 x 8 x 24, as many
    numbers in a quarter of the places, learned much more slowly.
    """
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=CHANNELS,
        mid_block_add_attention=False,
        sample_size=catalogue.SIDE,
    )
    # Every residual block begins as the identity, which makes the first steps larger ones.
    for name, part in network.named_modules():
        if name.endswith("conv2"):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    return network


def denoiser() -> UNet2DConditionModel:
    """A UNet of 9 M parameters, thin where its maps are large, with cross-attention below."""
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 128, 192),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text model of two layers and width 128."""
    return training.text_encoder(tokenizer, WIDTH)


def scheduler() -> DDIMScheduler:
    """The noise schedule of mini-sd, which ends in pure noise."""
    return mini_sd.scheduler()


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write a tokenizer with a token for every word of the captions, and open it."""
    return vocabulary.write_tokenizer(folder, catalogue.words(), TOKENS)


def probe(classes: int, features: int) -> nn.Linear:
    """What reads a picture's fields and features off a caption while the encoder is trained."""
    return nn.Linear(WIDTH, classes + features)
