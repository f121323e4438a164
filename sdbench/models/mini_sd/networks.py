"""The networks of mini-sd, with random weights: Stable Diffusion's classes at 1 % of the size."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from sdbench.models.mini_sd import scenes
from sdbench.models.training import text_encoder as training
from sdbench.models.training import tokenizer as vocabulary

WIDTH = 128  # of the text encoder
TOKENS = 32
LATENT = 16  # side of the latents


def autoencoder() -> AutoencoderKL:
    """An autoencoder of 0.7 M parameters: 64 x 64 x 3 to 16 x 16 x 4."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=scenes.SIDE,
    )


def denoiser() -> UNet2DConditionModel:
    """A UNet of 6.7 M parameters with cross-attention at its two lower levels."""
    return UNet2DConditionModel(
        sample_size=LATENT,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text model of two layers and width 128."""
    return training.text_encoder(tokenizer, WIDTH)


def probe() -> nn.Linear:
    """What reads a scene's attributes off the text encoder's output while that is trained."""
    return nn.Linear(WIDTH, sum(len(words) for words in scenes.WORDS))


def scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion's second version, ending in pure noise.

    A schedule that leaves some signal at its last timestep lets the model learn to read the
    background from it, and at sampling it is read from the mean of the noise (Lin et al. 2024,
    arXiv 2305.08891). At a terminal signal-to-noise ratio of zero the noise cannot be predicted
    but the velocity can, and sampling has to begin at the last timestep: `trailing` spacing.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write a tokenizer with a token for every word of the captions, and open it."""
    return vocabulary.write_tokenizer(folder, scenes.words(), TOKENS)
