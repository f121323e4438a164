"""Kandinsky 5 and 6: two calls a step, latents with the channels last."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5Transformer3DModel,
    Kandinsky6Transformer3DModel,
    MMAudioVAE,
    MMAudioVocoder,
)

from tools.pipelines.parts import video
from tools.pipelines.small import WITHOUT_HALVES, Small, rows, small

WITHOUT_HALVES["Kandinsky6SRPipeline"] = "sharpens a video without a prompt"

CHANNELS = 4
"""Of the latents."""
POOLED = 8
"""Width of the embedding of a whole text."""
BLOCKS = {
    "in_visual_dim": CHANNELS,
    "out_visual_dim": CHANNELS,
    "in_text_dim": video.WIDTH,
    "in_text_dim2": POOLED,
    "time_dim": 16,
    "model_dim": 12,
    "ff_dim": 24,
    "num_text_blocks": 1,
    "num_visual_blocks": 1,
    "axes_dims": (4, 4, 4),
}
TEXTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


def _autoencoder() -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


def _parts(autoencoder: torch.nn.Module | None, with_picture: bool) -> dict[str, Any]:
    denoiser = Kandinsky5Transformer3DModel(**BLOCKS, visual_cond=with_picture)
    return dict.fromkeys(TEXTS) | {
        "transformer": video.awake(denoiser),
        "vae": autoencoder,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    }


def _lengths(images: int) -> torch.Tensor:
    """Where each text begins in a row of all, and where the last one ends."""
    return torch.arange(images + 1, dtype=torch.int32) * video.TOKENS


def _two_texts(pipe: Any, picture: bool = False, **fixed: Any) -> Small:
    """Embeddings of two encoders, and how long the texts are."""

    def call(images: int) -> dict[str, Any]:
        texts = {
            "prompt_embeds_qwen": video.texts(images, seed=1),
            "negative_prompt_embeds_qwen": video.texts(images, seed=2),
            "prompt_embeds_clip": rows(images, POOLED, seed=4),
            "negative_prompt_embeds_clip": rows(images, POOLED, seed=5),
            "prompt_cu_seqlens": _lengths(images),
            "negative_prompt_cu_seqlens": _lengths(images),
        }
        given = {"image": video.pictures(images)} if picture else {}
        return video.arguments(images, **texts, **given, **fixed)

    return Small(
        pipe=video.quiet(pipe),
        call=call,
        off=video.unguided,
        another=lambda images: {"prompt_embeds_qwen": video.texts(images, seed=3)},
    )


@small("Kandinsky5T2VPipeline")
def text_to_video(kind: type) -> Small:
    """What a step makes is written into the latents, which have channels for a picture too."""
    torch.manual_seed(0)
    return _two_texts(kind(**_parts(None, with_picture=True)), **video.VIDEO)


@small("Kandinsky5I2VPipeline")
def image_to_video(kind: type) -> Small:
    """The scheduler never sees the first frame, which is given.

    The first four are normalized by those after them.
    """
    torch.manual_seed(0)
    pipe = kind(**_parts(_autoencoder(), with_picture=True))
    return _two_texts(pipe, picture=True, **video.SIZE, num_frames=17)


@small("Kandinsky5T2IPipeline")
def text_to_image(kind: type) -> Small:
    """A video of one frame; it allows a few sizes, here a small one."""
    torch.manual_seed(0)
    pipe = kind(**_parts(None, with_picture=False))
    pipe.resolutions = [(video.SIDE, video.SIDE)]
    return _two_texts(pipe, **video.SIZE)


@small("Kandinsky5I2IPipeline")
def image_to_image(kind: type) -> Small:
    """The picture to edit stands in channels of its own."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=CHANNELS,
        norm_num_groups=4,
    )
    pipe = kind(**_parts(autoencoder.eval(), with_picture=True))
    pipe.resolutions = [(video.SIDE, video.SIDE)]
    return _two_texts(pipe, picture=True, **video.SIZE)


def _sound() -> dict[str, torch.nn.Module]:
    """An autoencoder of sounds and what makes waves of its pictures, both asked for by name."""
    autoencoder = MMAudioVAE(
        mel_bins=8,
        latent_channels=CHANNELS,
        hidden_channels=8,
        channel_multipliers=(1, 2),
        layers_per_block=1,
        sample_rate=64,
        n_fft=16,
        hop_length=4,
    )
    vocoder = MMAudioVocoder(
        num_mels=8,
        upsample_initial_channel=8,
        upsample_rates=(2, 2),
        upsample_kernel_sizes=(4, 4),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
    )
    return {"audio_vae": autoencoder.eval(), "vocoder": vocoder.eval()}


@small("Kandinsky6TI2VAPipeline")
def with_sound(kind: type) -> Small:
    """A video and its sound in each call of the denoiser, each by a scheduler."""
    torch.manual_seed(0)
    denoiser = Kandinsky6Transformer3DModel(
        **BLOCKS,
        visual_cond=True,
        in_audio_dim=CHANNELS,
        out_audio_dim=CHANNELS,
        visual_token_type_num_embeddings=2,
    )
    parts = dict.fromkeys(TEXTS) | {
        "transformer": video.awake(denoiser),
        "vae": _autoencoder(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
    }
    made = video.by_embeddings(kind(**parts, **_sound()), **video.VIDEO)
    return video.each(
        made,
        pooled_prompt_embeds=lambda images: rows(images, POOLED, seed=4),
        negative_pooled_prompt_embeds=lambda images: rows(images, POOLED, seed=5),
    )
