"""Tiny parts of pipelines of videos, and the arguments that nearly all of them take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLWan
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from tools.pipelines.small import SCALE, STEPS, Small, generators, rows

WIDTH = 8
"""Of the embeddings of a text."""
TOKENS = 6
"""Of a text."""
SIDE = 64
"""Of a frame in pixels, for autoencoders that make it 8 times smaller."""
FRAMES = 5
"""Of a video, for autoencoders that keep the first frame and every fourth one after it."""
SIZE: dict[str, Any] = {"height": SIDE, "width": SIDE}
VIDEO: dict[str, Any] = SIZE | {"num_frames": FRAMES}


def texts(images: int, seed: int) -> torch.Tensor:
    """Embeddings of as many texts."""
    return rows(images, TOKENS, WIDTH, seed=seed)


def pictures(images: int, side: int = SIDE) -> torch.Tensor:
    """Pictures between 0 and 1, (images, 3, side, side)."""
    return rows(images, 3, side, side, seed=4).sigmoid()


def clips(images: int, frames: int = FRAMES, side: int = SIDE) -> torch.Tensor:
    """Videos between 0 and 1, (images, frames, 3, side, side)."""
    return rows(images, frames, 3, side, side, seed=5).sigmoid()


def picture(side: int = SIDE) -> Image.Image:
    """One for the classes that take no tensors."""
    pixels = pictures(1, side)[0].movedim(0, -1).mul(255).byte().numpy()
    return Image.fromarray(pixels)


def prompts(images: int) -> dict[str, torch.Tensor]:
    """What a prompt and a negative one say."""
    return {
        "prompt_embeds": texts(images, seed=1),
        "negative_prompt_embeds": texts(images, seed=2),
    }


def masks(images: int) -> dict[str, torch.Tensor]:
    """All tokens of all texts count."""
    names = ("prompt_attention_mask", "negative_prompt_attention_mask")
    return {name: torch.ones(images, TOKENS, dtype=torch.long) for name in names}


def arguments(images: int, **own: Any) -> dict[str, Any]:
    """Those of a call that stops at latents; `own` come on top."""
    common = {
        "num_inference_steps": STEPS,
        "guidance_scale": SCALE,
        "generator": generators(images),
        "output_type": "latent",
    }
    return common | own


def unguided(images: int) -> dict[str, Any]:
    """The scale of no guidance, for most classes."""
    return {"guidance_scale": 1.0}


def another_prompt(images: int) -> dict[str, Any]:
    """Another prompt, but the same negative one."""
    return {"prompt_embeds": texts(images, seed=3)}


def by_embeddings(pipe: Any, batches: tuple[int, ...] = (1, 2), **own: Any) -> Small:
    """A pipeline that takes embeddings of both prompts and, whatever it makes, `own` arguments."""
    return Small(
        pipe=quiet(pipe),
        call=lambda images: arguments(images, **prompts(images), **own),
        off=unguided,
        another=another_prompt,
        batches=batches,
    )


def by_masked_embeddings(pipe: Any, **own: Any) -> Small:
    """The same for classes that ask for masks with the embeddings."""
    return plus(by_embeddings(pipe, **own), masks)


def plus(made: Small, more: Callable[[int], dict[str, Any]]) -> Small:
    """The same with the arguments that `more` makes for a number of images on top."""
    call = made.call
    return replace(made, call=lambda images: call(images) | more(images))


def each(made: Small, **makers: Callable[[int], Any]) -> Small:
    """The same with arguments by name, each made for a number of images."""
    return plus(made, lambda images: {name: make(images) for name, make in makers.items()})


def without(made: Small, name: str) -> Small:
    """The same without an argument."""
    call = made.call

    def shorter(images: int) -> dict[str, Any]:
        return {key: value for key, value in call(images).items() if key != name}

    return replace(made, call=shorter)


def guider(made: Small) -> Small:
    """The same where guiders have the scale: a call sets it there, on or off."""

    def scaled(scale: float) -> dict[str, Any]:
        for name in ("guider", "guider_2"):
            if hasattr(made.pipe, name):
                getattr(made.pipe, name).guidance_scale = scale
        return {}

    on = plus(without(made, "guidance_scale"), lambda images: scaled(SCALE))
    return replace(on, off=lambda images: scaled(1.0))


def quiet(pipe: Any) -> Any:
    """The same pipeline without bars of progress."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan_autoencoder() -> AutoencoderKLWan:
    """8 times smaller, 16 channels."""
    return AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


def clip_vision() -> dict[str, Any]:
    """An encoder of pictures into 17 tokens of 4 numbers, and its preprocessing."""
    config = CLIPVisionConfig(
        hidden_size=4,
        intermediate_size=8,
        projection_dim=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=4,
        patch_size=1,
    )
    return {
        "image_encoder": CLIPVisionModel(config).eval(),
        "image_processor": CLIPImageProcessor(crop_size=4, size=4),
    }


def awake(model: torch.nn.Module) -> torch.nn.Module:
    """The same with small random numbers where a new model of its class has layers of zeros.

    Such layers let nothing of the text through.
    """
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def second_texts(images: int) -> dict[str, torch.Tensor]:
    """What Hunyuan Video 1.5 takes besides: texts of a second encoder, and masks for both."""
    masks = {
        f"{sign}prompt_embeds_mask{encoder}": torch.ones(images, TOKENS)
        for sign in ("", "negative_")
        for encoder in ("", "_2")
    }
    return masks | {
        "prompt_embeds_2": texts(images, seed=6),
        "negative_prompt_embeds_2": texts(images, seed=7),
    }


def sound_autoencoder(channels: int) -> AutoencoderKLLTX2Audio:
    """That of LTX 2."""
    return AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=channels,
        mel_bins=8,
    ).eval()
