"""LTX 2, which makes a video and its sound in one call of both halves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

from tools.pipelines.parts import video
from tools.pipelines.small import SCALE, WITHOUT_HALVES, Small, small

for _name in ("LTX2DFRPipeline", "LTX2DFRTemporalRefinePipeline"):
    WITHOUT_HALVES[_name] = "no guidance: its denoiser is distilled"
WITHOUT_HALVES["LTX2LatentUpsamplePipeline"] = "no loop: one call of a network for upsampling"
WITHOUT_HALVES["LTX2VideoDiffusionDecodePipeline"] = "decodes latents, without a prompt"

CHANNELS = 4
"""Of the latents of a video, and of the tokens of a sound."""
VIDEO: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 5}
"""3 x 4 x 4 tokens."""
PLAIN: dict[str, Any] = {
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "spatio_temporal_guidance_blocks": None,
}
"""No calls besides those of the two halves: layers skipped, or no sound in the video."""
PLAIN_SOUND: dict[str, Any] = {
    "audio_guidance_scale": SCALE,
    "audio_stg_scale": 0.0,
    "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0,
}


def _denoiser() -> LTX2VideoTransformer3DModel:
    return LTX2VideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=CHANNELS,
        audio_out_channels=CHANNELS,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        caption_channels=video.WIDTH,
        rope_double_precision=False,
        rope_type="split",
    ).eval()


def _connectors() -> LTX2TextConnectors:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1}
    both = {
        f"{stream}_connector_{name}": size
        for stream in ("video", "audio")
        for name, size in (sizes | {"num_learnable_registers": None}).items()
    }
    return LTX2TextConnectors(
        caption_channels=video.WIDTH,
        text_proj_in_factor=1,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        rope_type="split",
        **both,
    ).eval()


def _parts() -> dict[str, Any]:
    autoencoder = AutoencoderKLLTX2Video(
        latent_channels=CHANNELS,
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
    return dict.fromkeys(("text_encoder", "tokenizer", "vocoder")) | {
        "transformer": _denoiser(),
        "connectors": _connectors(),
        "vae": autoencoder.eval(),
        "audio_vae": video.sound_autoencoder(CHANNELS // 2),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def _guided(kind: type, pictures: bool = False, sound: bool = True, **fixed: Any) -> Small:
    torch.manual_seed(0)
    scales = PLAIN | PLAIN_SOUND if sound else PLAIN
    made = video.by_masked_embeddings(kind(**_parts()), **VIDEO, **scales, **fixed)
    if pictures:
        made = video.each(made, image=lambda images: video.pictures(images, side=32))

    quiet = {"audio_guidance_scale": 1.0} if sound else {}
    return replace(made, off=lambda images: video.unguided(images) | quiet)


@small("LTX2Pipeline")
def text_to_video(kind: type) -> Small:
    """Both streams are guided on predictions of the clean sample, each by a scheduler."""
    return _guided(kind)


@small("LTX2ImageToVideoPipeline")
def image_to_video(kind: type) -> Small:
    """The scheduler of the video never sees the first frame, which is given."""
    return _guided(kind, pictures=True, image_crf=0)


@small("LTX2ConditionPipeline", "LTX2InContextPipeline")
def condition(kind: type) -> Small:
    """The given frame is put in the place of what the denoiser makes of it."""
    frame = LTX2VideoCondition(frames=video.picture(32), index=0, strength=1.0, crf=0)
    return _guided(kind, conditions=[frame])


@small("LTX2HDRPipeline")
def high_range(kind: type) -> Small:
    """The video alone, though the denoiser makes a sound as well."""
    return _guided(kind, sound=False)
