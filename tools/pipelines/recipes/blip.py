"""BLIP-Diffusion: a picture of the subject goes into the text."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, PNDMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.pipelines.deprecated.blip_diffusion.blip_image_processing import BlipImageProcessor
from diffusers.pipelines.deprecated.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel
from torch import nn

from tools.pipelines.parts.unet import (
    LOOKED_AT,
    WIDTH,
    build,
    conditioned,
    control,
    networks,
    photos,
    text_config,
    tokenizer,
)
from tools.pipelines.small import Small, small


class QFormer(ModelMixin, ConfigMixin):
    """In place of the library's, which needs an older transformers: the same for all subjects."""

    @register_to_config
    def __init__(self, num_query_tokens: int = 2) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.randn(1, num_query_tokens, WIDTH))

    def forward(
        self, text_input: list[str], image_input: torch.Tensor, return_dict: bool
    ) -> torch.Tensor:
        """Embeddings of a picture for each subject, (subjects, tokens, width)."""
        return (self.query_tokens + image_input.mean()).expand(len(text_input), -1, -1)


def _subjects(images: int, seed: int) -> dict[str, Any]:
    return {"prompt": [f"circle {image} {seed}" for image in range(images)]}


def _referring(images: int) -> dict[str, Any]:
    subjects = ["star"] * images
    return {
        "reference_image": photos(1)[0],
        "source_subject_category": subjects,
        "target_subject_category": subjects,
        "prompt_reps": 1,
        "height": LOOKED_AT,
        "width": LOOKED_AT,
        "output_type": "pt",
    }


def _blip() -> dict[str, Any]:
    """Latents are half as large as the picture that is asked for: the UNet has two levels."""
    parts = networks()
    return parts | {
        "scheduler": PNDMScheduler.from_config(parts["scheduler"].config, skip_prk_steps=True),
        "tokenizer": tokenizer(),
        "text_encoder": ContextCLIPTextModel(text_config()),
        "qformer": QFormer(),
        "image_processor": BlipImageProcessor(size={"height": LOOKED_AT, "width": LOOKED_AT}),
    }


@small("BlipDiffusionPipeline")
def subject(kind: type) -> Small:
    """A picture of the subject goes into the text; it does not stop at latents."""
    return conditioned(build(kind, **_blip()), _subjects, _referring)


@small("BlipDiffusionControlNetPipeline")
def subject_and_control(kind: type) -> Small:
    """The same with a ControlNet."""
    net = {"conditioning_embedding_out_channels": (4, 4)}
    pipe = build(kind, **_blip(), controlnet=control(**net))
    return conditioned(
        pipe, _subjects, lambda images: _referring(images) | {"condtioning_image": photos(1)[0]}
    )
