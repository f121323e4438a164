"""Sana's videos: one call of both halves, linear attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Video,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaVideoTransformer3DModel,
    SanaWMTransformer3DModel,
)

from tools.pipelines.parts import video
from tools.pipelines.small import Small, small

UNBINNED: dict[str, Any] = {"use_resolution_binning": False, "negative_prompt": None}


def _denoiser() -> SanaVideoTransformer3DModel:
    return SanaVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=video.WIDTH,
        sample_size=8,
        rope_max_seq_len=32,
    ).eval()


@small("SanaVideoPipeline")
def text_to_video(kind: type) -> Small:
    """A solver of two orders."""
    torch.manual_seed(0)
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=8.0, prediction_type="flow_prediction"
    )
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "scheduler": scheduler}
    pipe = kind(**parts, transformer=_denoiser())
    return video.by_masked_embeddings(pipe, **video.SIZE, frames=video.FRAMES, **UNBINNED)


@small("SanaImageToVideoPipeline")
def image_to_video(kind: type) -> Small:
    """The scheduler never sees the first frame, which is given."""
    torch.manual_seed(0)
    parts = {"tokenizer": None, "text_encoder": None, "vae": video.wan_autoencoder()}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=8.0)
    pipe = kind(**parts, scheduler=scheduler, transformer=_denoiser())
    frames: dict[str, Any] = {"frames": video.FRAMES, "image": video.pictures(1)}
    return video.by_masked_embeddings(pipe, **video.SIZE, **frames, **UNBINNED)


@small("SanaWMPipeline")
def world_model(kind: type) -> Small:
    """The scheduler gets the prediction's negative, as tokens; one video a call."""
    torch.manual_seed(0)
    channels = 4
    autoencoder = AutoencoderKLLTX2Video(
        latent_channels=channels,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
    )
    denoiser = SanaWMTransformer3DModel(
        in_channels=channels,
        num_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        linear_head_dim=16,
        chunk_plucker_channels=12,
        caption_channels=video.WIDTH,
        mixed_precision="no",
    )
    pipe = kind(
        tokenizer=None,
        text_encoder=None,
        vae=autoencoder.eval(),
        transformer=video.awake(denoiser),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=8.0),
    )
    camera: dict[str, Any] = {"action": "w-4", "intrinsics": [30.0, 30.0, 16.0, 16.0]}
    size: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 5}
    made = video.by_embeddings(
        pipe, prompt="", image=video.picture(32), **camera, **size, batches=(1,)
    )

    def embeddings(images: int) -> dict[str, Any]:
        masked = video.masks(images)
        return masked | {name: text[:, None] for name, text in video.prompts(images).items()}

    def another(images: int) -> dict[str, Any]:
        return {"prompt_embeds": video.texts(images, seed=3)[:, None]}

    return replace(video.plus(made, embeddings), another=another)
