"""CogVideoX and ConsisID: one call of both halves, latents with frames before channels."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXTransformer3DModel,
    ConsisIDTransformer3DModel,
)

from tools.pipelines.parts import video
from tools.pipelines.small import STEPS, Small, rows, small

CHANNELS = 4
"""Of the latents."""
BLOCKS = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "time_embed_dim": 2,
    "text_embed_dim": video.WIDTH,
    "num_layers": 1,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": video.FRAMES,
    "max_text_seq_length": video.TOKENS,
}
ROTARY = {"use_rotary_positional_embeddings": True}
WITH_PICTURE = {"in_channels": 2 * CHANNELS}


def _parts(denoiser: torch.nn.Module, scheduler: Any) -> dict[str, Any]:
    autoencoder = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return {
        "tokenizer": None,
        "text_encoder": None,
        "vae": autoencoder.eval(),
        "transformer": denoiser.eval(),
        "scheduler": scheduler,
    }


@small("CogVideoXPipeline")
def text_to_video(kind: type) -> Small:
    """As in its model of 2 billion parameters: DDIM, positions added to the tokens."""
    torch.manual_seed(0)
    denoiser = CogVideoXTransformer3DModel(**BLOCKS)
    pipe = kind(**_parts(denoiser, CogVideoXDDIMScheduler()))
    return video.by_embeddings(pipe, **video.VIDEO)


@small("CogVideoXImageToVideoPipeline")
def image_to_video(kind: type) -> Small:
    """A scheduler that draws noise, and whose `step` takes other arguments; rotary positions."""
    torch.manual_seed(0)
    denoiser = CogVideoXTransformer3DModel(**BLOCKS | ROTARY | WITH_PICTURE)
    pipe = kind(**_parts(denoiser, CogVideoXDPMScheduler()))
    return video.each(video.by_embeddings(pipe, **video.VIDEO), image=video.pictures)


@small("CogVideoXVideoToVideoPipeline")
def video_to_video(kind: type) -> Small:
    """A loop without the first of the scheduler's five steps."""
    torch.manual_seed(0)
    denoiser = CogVideoXTransformer3DModel(**BLOCKS)
    pipe = kind(**_parts(denoiser, CogVideoXDPMScheduler()))
    shorter: dict[str, Any] = {"strength": 0.8, "num_inference_steps": STEPS + 1}
    made = video.by_embeddings(pipe, **video.SIZE, **shorter)
    return video.each(made, video=video.clips)


@small("CogVideoXFunControlPipeline")
def fun_control(kind: type) -> Small:
    """The controlling video stands in channels of its own."""
    torch.manual_seed(0)
    denoiser = CogVideoXTransformer3DModel(**BLOCKS | ROTARY | WITH_PICTURE)
    pipe = kind(**_parts(denoiser, CogVideoXDDIMScheduler()))
    return video.each(video.by_embeddings(pipe, **video.SIZE), control_video=video.clips)


@small("ConsisIDPipeline")
def consis_id(kind: type) -> Small:
    """A face goes to layers of its own, in one row for both halves."""
    torch.manual_seed(0)
    denoiser = ConsisIDTransformer3DModel(
        **BLOCKS | ROTARY | WITH_PICTURE,
        is_train_face=True,
        cross_attn_interval=1,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=2,
        LFE_vit_dim=2,
        LFE_depth=5,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=1,
        LFE_num_querie=1,
        LFE_output_dim=21,
        LFE_ff_mult=1,
        LFE_num_scale=1,
    )
    pipe = kind(**_parts(denoiser, CogVideoXDPMScheduler()))
    face: dict[str, Any] = {"id_cond": rows(1, 2, seed=6), "id_vit_hidden": [rows(1, 2, 2, seed=7)]}
    made = video.by_embeddings(pipe, **video.VIDEO, **face)
    return video.each(made, image=video.pictures)
