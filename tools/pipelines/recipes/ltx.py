"""LTX: one call of both halves of tokens; the scheduler may see fewer frames than the denoiser."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXEulerAncestralRFScheduler,
    LTXVideoTransformer3DModel,
)

from tools.pipelines.parts import text, video
from tools.pipelines.small import SCALE, STEPS, WITHOUT_HALVES, Small, generators, small

WITHOUT_HALVES["LTXLatentUpsamplePipeline"] = "no loop: one call of a network for upsampling"

CHANNELS = 8
"""Of the latents."""
VIDEO: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9}
"""2 x 4 x 4 tokens with an autoencoder that makes a video 8 times smaller."""


def _parts(autoencoder: bool = True) -> dict[str, Any]:
    denoiser = LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=video.WIDTH,
    )
    return {
        "text_encoder": None,
        "tokenizer": None,
        "transformer": denoiser.eval(),
        "vae": _autoencoder() if autoencoder else None,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def _autoencoder() -> AutoencoderKLLTXVideo:
    autoencoder = AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        patch_size=1,
    )
    return autoencoder.eval()


def _with_masks(pipe: Any, pictures: int | None = None, **fixed: Any) -> Small:
    """`pictures` are as many for each call, 0 for as many as there are images."""
    made = video.by_masked_embeddings(pipe, **fixed)
    if pictures is None:
        return made
    return video.each(made, image=lambda images: video.pictures(pictures or images, side=32))


@small("LTXPipeline")
def text_to_video(kind: type) -> Small:
    """Without an autoencoder, whose place takes its usual compression."""
    torch.manual_seed(0)
    sizes = {"height": 128, "width": 128, "num_frames": 9}
    return _with_masks(kind(**_parts(autoencoder=False)), **sizes)


@small("LTXImageToVideoPipeline")
def image_to_video(kind: type) -> Small:
    """The scheduler never sees the first frame, which is given."""
    torch.manual_seed(0)
    return _with_masks(kind(**_parts()), pictures=0, **VIDEO)


@small("LTXConditionPipeline")
def condition(kind: type) -> Small:
    """The given frame is noised anew in each step and kept after it."""
    torch.manual_seed(0)
    parts = _parts() | {"scheduler": FlowMatchEulerDiscreteScheduler()}
    return _with_masks(kind(**parts), pictures=1, **VIDEO)


@small("LTXI2VLongMultiPromptPipeline")
def long_video(kind: type) -> Small:
    """It reads one prompt a window, and leaves out the scheduler's last step."""
    torch.manual_seed(0)
    tokenizer = text.word_tokenizer()
    parts = _parts() | {
        "tokenizer": tokenizer,
        "text_encoder": text.t5(video.WIDTH, tokenizer),
        "scheduler": LTXEulerAncestralRFScheduler(),
    }
    fixed = VIDEO | {
        "prompt": text.PROMPTS[0],
        "negative_prompt": text.NEGATIVE,
        "num_inference_steps": STEPS + 1,
        "guidance_scale": SCALE,
        "output_type": "latent",
        "max_sequence_length": video.TOKENS,
    }
    return Small(
        pipe=video.quiet(kind(**parts)),
        call=lambda images: fixed | {"generator": generators(images)[0]},
        off=video.unguided,
        another=lambda images: {"prompt": text.ANOTHER},
        batches=(1,),
    )
