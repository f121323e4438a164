"""Hunyuan Video in both generations; two calls a step, the conditional one first."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
)
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from tools.pipelines.parts import video
from tools.pipelines.small import SCALE, Small, rows, small

CHANNELS = 4
"""Of the latents."""
POOLED = 8
"""Width of the embedding of a whole text."""
BLOCKS = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": video.WIDTH,
    "pooled_projection_dim": POOLED,
    "rope_axes_dim": (2, 4, 4),
}


def _parts(denoiser: torch.nn.Module) -> dict[str, Any]:
    autoencoder = AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return dict.fromkeys(names) | {
        "transformer": denoiser.eval(),
        "vae": autoencoder.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


def _siglip() -> dict[str, Any]:
    """An encoder of pictures into 4 tokens of 8 numbers, and its preprocessing."""
    config = SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return {
        "image_encoder": SiglipVisionModel(config).eval(),
        "feature_extractor": SiglipImageProcessor(size={"height": 16, "width": 16}),
    }


def _true_guidance(pipe: Any, picture: bool = True, **fixed: Any) -> Small:
    """Guidance under its second name: `guidance_scale` is an input of the denoiser here."""

    def call(images: int) -> dict[str, Any]:
        pooled = {
            "pooled_prompt_embeds": rows(images, POOLED, seed=4),
            "negative_pooled_prompt_embeds": rows(images, POOLED, seed=5),
        }
        given = {"image": video.pictures(images)} if picture else {}
        own = video.prompts(images) | video.masks(images) | pooled | given | fixed
        return video.arguments(images, true_cfg_scale=SCALE, **{"guidance_scale": 1.0} | own)

    return Small(
        pipe=video.quiet(pipe),
        call=call,
        off=lambda images: {"true_cfg_scale": 1.0},
        another=video.another_prompt,
    )


@small("HunyuanVideoPipeline")
def text_to_video(kind: type) -> Small:
    """True guidance on top of the distilled one."""
    torch.manual_seed(0)
    pipe = kind(**_parts(HunyuanVideoTransformer3DModel(**BLOCKS)))
    return _true_guidance(pipe, picture=False, guidance_scale=6.0, **video.VIDEO)


@small("HunyuanVideoImageToVideoPipeline")
def image_to_video(kind: type) -> Small:
    """The scheduler never sees the first frame, which is put back after each step."""
    torch.manual_seed(0)
    replaced = {"image_condition_type": "token_replace", "guidance_embeds": False}
    denoiser = HunyuanVideoTransformer3DModel(**BLOCKS | replaced)
    pipe = kind(**_parts(denoiser), image_processor=None)
    return _true_guidance(pipe, **video.VIDEO)


@small("HunyuanSkyreelsImageToVideoPipeline")
def skyreels(kind: type) -> Small:
    """The picture stands in channels of its own."""
    torch.manual_seed(0)
    denoiser = HunyuanVideoTransformer3DModel(**BLOCKS | {"in_channels": 2 * CHANNELS})
    return _true_guidance(kind(**_parts(denoiser)), **video.VIDEO)


@small("HunyuanVideoFramepackPipeline")
def framepack(kind: type) -> Small:
    """Two sections, each with a loop of its own; the frames made so far are an input."""
    torch.manual_seed(0)
    more: dict[str, Any] = {
        "has_image_proj": True,
        "image_proj_dim": 8,
        "has_clean_x_embedder": True,
    }
    denoiser = HunyuanVideoFramepackTransformer3DModel(**BLOCKS | more)
    pipe = kind(**_parts(denoiser), **_siglip())
    sections: dict[str, Any] = {"latent_window_size": 2, "num_frames": 10}
    return _true_guidance(pipe, **video.SIZE, **sections)


def _parts_1_5(kind_of_task: str) -> dict[str, Any]:
    channels = 8
    denoiser = HunyuanVideo15Transformer3DModel(
        in_channels=2 * channels + 1,
        out_channels=channels,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=video.WIDTH,
        text_embed_2_dim=video.WIDTH,
        image_embed_dim=8,
        rope_axes_dim=(2, 4, 4),
        target_size=16,
        task_type=kind_of_task,
    )
    autoencoder = AutoencoderKLHunyuanVideo15(
        latent_channels=channels, block_out_channels=(16, 16, 16, 16, 16), layers_per_block=1
    )
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return dict.fromkeys(names) | {
        "transformer": denoiser.eval(),
        "vae": autoencoder.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "guider": ClassifierFreeGuidance(guidance_scale=SCALE),
    }


def _guided(pipe: Any, **fixed: Any) -> Small:
    return video.guider(video.plus(video.by_embeddings(pipe, **fixed), video.second_texts))


@small("HunyuanVideo15Pipeline")
def text_to_video_1_5(kind: type) -> Small:
    """A guider asks for the calls; tokens stand for the picture that is not there."""
    torch.manual_seed(0)
    pipe = kind(**_parts_1_5("t2v"))
    pipe.vision_num_semantic_tokens = 4
    return _guided(pipe, **video.VIDEO)


@small("HunyuanVideo15ImageToVideoPipeline")
def image_to_video_1_5(kind: type) -> Small:
    """The picture stands in channels of its own and is encoded besides."""
    torch.manual_seed(0)
    pipe = kind(**_parts_1_5("i2v"), **_siglip())
    frames: dict[str, Any] = {"num_frames": video.FRAMES, "image": video.picture()}
    return _guided(pipe, **frames)
