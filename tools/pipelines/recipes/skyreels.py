"""SkyReels V2, whose diffusion forcing gives every frame a scheduler of its own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SkyReelsV2Transformer3DModel, UniPCMultistepScheduler

from tools.pipelines.parts import video
from tools.pipelines.small import Small, small

FRAMES = 9
"""Three of the latents."""
BLOCKS = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": video.WIDTH,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}


def _pipe(kind: type, more: dict[str, Any] | None = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    scheduler = UniPCMultistepScheduler(
        use_flow_sigmas=True, flow_shift=8.0, prediction_type="flow_prediction"
    )
    return kind(
        tokenizer=None,
        text_encoder=None,
        transformer=SkyReelsV2Transformer3DModel(**BLOCKS | changes),
        vae=video.wan_autoencoder(),
        scheduler=scheduler,
        **more or {},
    )


@small("SkyReelsV2Pipeline")
def text_to_video(kind: type) -> Small:
    """Two calls a step, the conditional one first."""
    return video.by_embeddings(_pipe(kind), **video.SIZE, num_frames=FRAMES)


@small("SkyReelsV2ImageToVideoPipeline")
def image_to_video(kind: type) -> Small:
    """The picture stands in channels of its own and is encoded besides."""
    pipe = _pipe(kind, more=video.clip_vision(), in_channels=36, image_dim=4)
    own: dict[str, Any] = video.SIZE | {"num_frames": FRAMES, "image": video.pictures(1)}
    return video.by_embeddings(pipe, **own)


@small("SkyReelsV2DiffusionForcingPipeline")
def forcing(kind: type) -> Small:
    """A step calls the scheduler of each frame."""
    pipe = _pipe(kind)
    return video.by_embeddings(pipe, **video.SIZE, prompt=None, num_frames=FRAMES)


@small("SkyReelsV2DiffusionForcingImageToVideoPipeline")
def forcing_image_to_video(kind: type) -> Small:
    """The first frame is given, so its scheduler is never called."""
    pipe = _pipe(kind)
    own: dict[str, Any] = video.SIZE | {"num_frames": FRAMES, "image": video.pictures(1)}
    return video.by_embeddings(pipe, **own)


@small("SkyReelsV2DiffusionForcingVideoToVideoPipeline")
def forcing_video_to_video(kind: type) -> Small:
    """Frames that continue a video, in one window."""
    pipe = _pipe(kind)
    window: dict[str, Any] = {"num_frames": FRAMES, "base_num_frames": FRAMES, "overlap_history": 5}
    made = video.by_embeddings(pipe, **video.SIZE, **window)
    return video.each(made, video=video.clips)
