"""Wan 2.1 and 2.2, and what is built on them: ChronoEdit, Lucy Edit, AnyFlow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    AnyFlowFARTransformer3DModel,
    AnyFlowTransformer3DModel,
    ChronoEditTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)

from tools.pipelines.parts import video
from tools.pipelines.small import STEPS, Small, generators, small

CHANNELS = 16
"""Of the latents."""
BLOCKS = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": video.WIDTH,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}


def _parts(**denoisers: torch.nn.Module) -> dict[str, Any]:
    return {
        "tokenizer": None,
        "text_encoder": None,
        "vae": video.wan_autoencoder(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    } | denoisers


@small("WanPipeline")
def text_to_video(kind: type) -> Small:
    """Two calls a step, the conditional one first."""
    torch.manual_seed(0)
    pipe = kind(**_parts(transformer=WanTransformer3DModel(**BLOCKS)))
    return video.by_embeddings(pipe, **video.VIDEO)


@small("WanImageToVideoPipeline")
def image_to_video(kind: type) -> Small:
    """Two experts, as in Wan 2.2; the picture stands in channels of its own."""
    torch.manual_seed(0)
    sizes = BLOCKS | {"in_channels": 2 * CHANNELS + 4}
    experts = {name: WanTransformer3DModel(**sizes) for name in ("transformer", "transformer_2")}
    pipe = kind(**_parts(**experts), boundary_ratio=0.8)
    return video.by_embeddings(pipe, **video.VIDEO, image=video.pictures(1))


@small("WanVideoToVideoPipeline")
def video_to_video(kind: type) -> Small:
    """A loop without the first of the scheduler's five steps."""
    torch.manual_seed(0)
    pipe = kind(**_parts(transformer=WanTransformer3DModel(**BLOCKS)))
    shorter: dict[str, Any] = {"strength": 0.8, "num_inference_steps": STEPS + 1}
    made = video.by_embeddings(pipe, **video.SIZE, **shorter)
    return video.each(made, video=video.clips)


@small("WanVACEPipeline")
def control(kind: type) -> Small:
    """Layers of control within the denoiser; one video a call."""
    torch.manual_seed(0)
    sizes = BLOCKS | {"vace_layers": [0], "vace_in_channels": 2 * CHANNELS + 64}
    pipe = kind(**_parts(transformer=WanVACETransformer3DModel(**sizes)))
    made = video.by_embeddings(pipe, batches=(1,), **video.VIDEO)
    return video.plus(made, lambda images: {"generator": generators(images)[0]})


@small("WanAnimatePipeline")
def animate(kind: type) -> Small:
    """The unconditional call sees no face either."""
    torch.manual_seed(0)
    denoiser = WanAnimateTransformer3DModel(
        **BLOCKS,
        image_dim=4,
        motion_encoder_channel_sizes={"4": 8, "8": 8},
        motion_encoder_size=8,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
    )
    pipe = kind(**_parts(transformer=denoiser), **video.clip_vision())
    moves: dict[str, Any] = {
        "pose_video": [video.picture()] * video.FRAMES,
        "face_video": [video.picture(8)] * video.FRAMES,
        "segment_frame_length": video.FRAMES,
    }
    return video.by_embeddings(pipe, **video.SIZE, image=video.picture(), **moves)


@small("ChronoEditPipeline")
def chrono_edit(kind: type) -> Small:
    """The edited picture is the last frame of a short video."""
    torch.manual_seed(0)
    sizes = BLOCKS | {"in_channels": 2 * CHANNELS + 4, "image_dim": 4}
    denoiser = ChronoEditTransformer3DModel(**sizes)
    pipe = kind(**_parts(transformer=denoiser), **video.clip_vision())
    return video.by_embeddings(pipe, **video.VIDEO, image=video.pictures(1))


@small("LucyEditPipeline")
def lucy_edit(kind: type) -> Small:
    """The video to edit stands in channels of its own."""
    torch.manual_seed(0)
    denoiser = WanTransformer3DModel(**BLOCKS | {"in_channels": 2 * CHANNELS})
    pipe = kind(**_parts(transformer=denoiser), expand_timesteps=True)
    made = video.by_embeddings(pipe, **video.VIDEO)
    return video.each(made, video=video.clips)


def _any_flow(kind: type, denoiser: torch.nn.Module, **own: Any) -> Small:
    parts = _parts(transformer=denoiser) | {"scheduler": FlowMapEulerDiscreteScheduler(shift=3.0)}
    made = video.by_embeddings(kind(**parts), **video.VIDEO, **own)
    # With embeddings of a negative prompt it makes two samples, guided or not.
    return replace(made, off=lambda images: {"guidance_scale": 1.0, "negative_prompt_embeds": None})


@small("AnyFlowPipeline")
def any_flow(kind: type) -> Small:
    """One call of both halves; frames come before channels."""
    torch.manual_seed(0)
    return _any_flow(kind, AnyFlowTransformer3DModel(**BLOCKS))


@small("AnyFlowFARPipeline")
def any_flow_far(kind: type) -> Small:
    """Two chunks of a frame each, with keys and values of both halves kept between them."""
    torch.manual_seed(0)
    denoiser = AnyFlowFARTransformer3DModel(**BLOCKS, chunk_partition=(1, 1))
    return _any_flow(kind, denoiser)
