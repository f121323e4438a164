"""Tiny parts of pipelines whose denoiser is a UNet, and the arguments that they take."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from sdbench.models.mini_sd import networks as mini_sd
from tools.pipelines.parts.flow_image import Fixed, Texts, embeddings, ready, steps, vae
from tools.pipelines.small import SCALE, Small, rows

WIDTH = 8
"""Of every text embedding."""
TOKENS = 4
"""Of every prompt, where embeddings stand for it."""
SIDE = 64
"""Of a picture in pixels; the autoencoder makes 8 x 8 latents of it."""
LOOKED_AT = 16
"""Side of a picture that an encoder of pictures gets."""

BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
}
XL_TEXT: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + WIDTH,
}
"""What the UNet of Stable Diffusion XL gets with the text: six numbers and a pooled embedding."""
CONTROL = {"conditioning_embedding_out_channels": (4, 4, 4, 4)}
"""A ControlNet makes a picture as small as the autoencoder does."""
SETTINGS = {"strength": 0.75, "pag_scale": 0.0}
"""Where a class takes them. Perturbed attention is switched off: it adds a third prediction."""

TEXT = embeddings(prompt_embeds=(TOKENS, WIDTH))
POOLED = embeddings(prompt_embeds=(TOKENS, WIDTH), pooled_prompt_embeds=(WIDTH,))


def unet(**changes: Any) -> UNet2DConditionModel:
    """A UNet of two levels, the lower one with cross-attention."""
    usual = {"sample_size": 8, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    return UNet2DConditionModel(**usual | BLOCKS | changes)


def scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def networks(**changes: Any) -> dict[str, Any]:
    """What every Stable Diffusion has, from the same seed; `changes` are the UNet's."""
    torch.manual_seed(0)
    return {"vae": vae(), "unet": unet(**changes), "scheduler": scheduler()}


def xl_networks(**changes: Any) -> dict[str, Any]:
    """What every Stable Diffusion XL has; its scheduler scales what the UNet gets."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    euler = EulerDiscreteScheduler(**betas, timestep_spacing="leading", steps_offset=1)
    return networks(**XL_TEXT | changes) | {"scheduler": euler}


def control(**changes: Any) -> ControlNetModel:
    """A ControlNet that fits the UNet."""
    return ControlNetModel(**BLOCKS | CONTROL | changes)


@cache
def tokenizer() -> CLIPTokenizer:
    """CLIP's, with few words; others fall apart into bytes."""
    with tempfile.TemporaryDirectory() as folder:
        return mini_sd.write_tokenizer(Path(folder))


def text_config() -> CLIPTextConfig:
    """Of a text encoder of one layer for that tokenizer."""
    words = tokenizer()
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=mini_sd.TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def readers(*, projection: bool = False) -> dict[str, Any]:
    """A tokenizer and a text encoder."""
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return {"tokenizer": tokenizer(), "text_encoder": kind(text_config())}


def vision_config(patch: int = 8) -> CLIPVisionConfig:
    """Of an encoder of pictures."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=LOOKED_AT,
        patch_size=patch,
    )


def vision(patch: int = 8) -> CLIPVisionModelWithProjection:
    """An encoder of pictures into embeddings of the text's width."""
    return CLIPVisionModelWithProjection(vision_config(patch))


def build(kind: type, **parts: Any) -> Any:
    """A pipeline of those parts, without the others that the class would have."""
    takes = inspect.signature(kind).parameters
    absent = {name: None for name in takes if takes[name].default is inspect.Parameter.empty}
    plain = {"requires_safety_checker": False, "add_watermarker": False}
    return kind(**absent | {name: plain[name] for name in plain.keys() & takes.keys()} | parts)


def spoken(images: int, seed: int) -> dict[str, Any]:
    """Prompts for the classes that take no embeddings, each image's own."""
    return {"prompt": [f"a circle {image} {seed}" for image in range(images)]}


def pictures(images: int, seed: int = 5, side: int = SIDE) -> torch.Tensor:
    """Random pictures with values between 0 and 1."""
    return torch.sigmoid(rows(images, 3, side, side, seed=seed))


def photos(images: int, seed: int = 5, side: int = SIDE) -> list[Image.Image]:
    """The same for classes that take no tensors."""
    pixels = (255 * pictures(images, seed, side)).byte().movedim(1, -1).numpy()
    return [Image.fromarray(picture) for picture in pixels]


def holes(images: int, side: int = SIDE) -> torch.Tensor:
    """Masks whose right half is to be painted."""
    mask = torch.zeros(images, 1, side, side)
    mask[..., side // 2 :] = 1.0
    return mask


def looked_at(images: int, seed: int = 5) -> torch.Tensor:
    """Pictures for an encoder of pictures."""
    return pictures(images, seed, LOOKED_AT)


PICTURES: dict[str, Callable[[int], Any]] = {
    "image": pictures,
    "control_image": lambda images: pictures(images, seed=6),
    "mask_image": holes,
}


def fixed(kind: type, **more: Callable[[int], Any]) -> Fixed:
    """The pictures and settings that the call of a class takes, and `more` arguments by name."""
    takes = inspect.signature(kind.__call__).parameters
    makers = {name: make for name, make in PICTURES.items() if name in takes} | more
    settings = {name: value for name, value in SETTINGS.items() if name in takes}
    return lambda images: settings | {name: make(images) for name, make in makers.items()}


def conditioned(pipe: Any, texts: Texts, own: Fixed, batches: tuple[int, ...] = (1, 2)) -> Small:
    """A pipeline that takes nothing for its unconditional half."""

    def call(images: int) -> dict[str, Any]:
        return steps(images) | {"guidance_scale": SCALE} | texts(images, 1) | own(images)

    return Small(
        ready(pipe),
        call,
        off=lambda images: {"guidance_scale": 1.0},
        another=lambda images: texts(images, 3),
        batches=batches,
    )
