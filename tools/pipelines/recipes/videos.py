"""Pipelines of videos that come alone: Mochi, Latte, Allegro, Helios, Motif."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AllegroTransformer3DModel,
    ClassifierFreeGuidance,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeliosScheduler,
    HeliosTransformer3DModel,
    LatteTransformer3DModel,
    MochiTransformer3DModel,
    MotifVideoTransformer3DModel,
)

from tools.pipelines.parts import video
from tools.pipelines.small import SCALE, Small, small

HEADS = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1}
CHANNELS = 4
"""Of the latents."""


def _parts(denoiser: torch.nn.Module, scheduler: Any, vae: Any = None) -> dict[str, Any]:
    return {
        "tokenizer": None,
        "text_encoder": None,
        "vae": vae,
        "transformer": denoiser.eval(),
        "scheduler": scheduler,
    }


@small("MochiPipeline")
def mochi(kind: type) -> Small:
    """A schedule of times that rise."""
    torch.manual_seed(0)
    denoiser = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        pooled_projection_dim=16,
        in_channels=CHANNELS,
        text_embed_dim=video.WIDTH,
        time_embed_dim=4,
        max_sequence_length=video.TOKENS,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = kind(**_parts(denoiser, scheduler))
    return video.by_masked_embeddings(pipe, **video.SIZE, num_frames=7)


@small("LattePipeline")
def latte(kind: type) -> Small:
    """The denoiser predicts a variance besides, which the pipeline cuts off after guidance."""
    torch.manual_seed(0)
    denoiser = LatteTransformer3DModel(
        **HEADS,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        cross_attention_dim=24,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=video.WIDTH,
        video_length=2,
    )
    pipe = kind(**_parts(denoiser, DDIMScheduler(clip_sample=False)))
    frames: dict[str, Any] = {"video_length": 2, "clean_caption": False, "negative_prompt": None}
    return video.by_embeddings(pipe, **video.SIZE, **frames)


@small("AllegroPipeline")
def allegro(kind: type) -> Small:
    """A scheduler that draws noise; positions with a row for each video, not for each half."""
    torch.manual_seed(0)
    denoiser = AllegroTransformer3DModel(
        **HEADS,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=2,
        caption_channels=video.WIDTH,
    )
    pipe = kind(**_parts(denoiser, EulerAncestralDiscreteScheduler()))
    frames: dict[str, Any] = {
        "num_frames": video.FRAMES,
        "clean_caption": False,
        "negative_prompt": None,
    }
    return video.by_masked_embeddings(pipe, **video.SIZE, **frames)


def _helios(kind: type, stages: int) -> Any:
    torch.manual_seed(0)
    denoiser = HeliosTransformer3DModel(
        **HEADS, text_dim=video.WIDTH, freq_dim=16, ffn_dim=16, rope_dim=(4, 4, 4)
    )
    scheduler = HeliosScheduler(stages=stages, use_dynamic_shifting=True)
    return kind(**_parts(denoiser, scheduler, video.wan_autoencoder()))


@small("HeliosPipeline")
def helios(kind: type) -> Small:
    """Two chunks, each with a loop of its own; the frames made so far are an input."""
    chunks: dict[str, Any] = {"num_latent_frames_per_chunk": 2, "num_frames": 10}
    return video.by_embeddings(_helios(kind, stages=1), **video.SIZE, **chunks)


@small("HeliosPyramidPipeline")
def helios_pyramid(kind: type) -> Small:
    """Loops at three sizes, one after the other."""
    made = video.by_embeddings(
        _helios(kind, stages=3),
        **video.VIDEO,
        num_latent_frames_per_chunk=2,
        pyramid_num_inference_steps_list=[2, 1, 1],
    )
    return video.without(made, "num_inference_steps")


def _motif(kind: type, batches: tuple[int, ...], **fixed: Any) -> Small:
    torch.manual_seed(0)
    denoiser = MotifVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        text_embed_dim=video.WIDTH,
        rope_axes_dim=(4, 4, 4),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    parts = _parts(denoiser, scheduler, video.wan_autoencoder())
    pipe = kind(**parts, guider=ClassifierFreeGuidance(SCALE), feature_extractor=None)

    own: dict[str, Any] = video.VIDEO | fixed | {"batches": batches}
    return video.guider(video.by_masked_embeddings(pipe, **own))


@small("MotifVideoPipeline")
def motif(kind: type) -> Small:
    """A guider asks for the calls."""
    return _motif(kind, batches=(1, 2))


@small("MotifVideoImage2VideoPipeline")
def motif_image_to_video(kind: type) -> Small:
    """The picture stands in channels of its own; it goes with one video only."""
    return _motif(kind, batches=(1,), prompt=None, image=video.pictures(1))
