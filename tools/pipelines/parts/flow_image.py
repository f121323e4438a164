"""What small pipelines of images with a transformer share: texts, pictures, autoencoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image
from torch import nn

from tools.pipelines.small import SCALE, STEPS, Small, generators, rows

WIDTH = 8
"""Of every text embedding."""
TOKENS = 3
"""Of every prompt, padding included."""
CHANNELS = 4
"""Of latents."""
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
PIXELS = {"height": 32, "width": 32}
"""4 x 4 latents: a transformer that takes patches of 2 x 2 has as many tokens as rows."""
AXES = (2, 2, 4)
"""Of rotary embeddings of a head of 8."""

Texts = Callable[[int, int], dict[str, Any]]
"""What stands for the prompts of a number of images, drawn with a seed."""
Fixed = Callable[[int], dict[str, Any]]
"""The other arguments for a number of images."""


def embeddings(*masks: str, **shapes: tuple[int, ...]) -> Texts:
    """Random embeddings by the argument's name, each image's own; every second prompt is padded."""

    def draw(images: int, seed: int) -> dict[str, Any]:
        drawn = {
            name: rows(images, *shape, seed=10 * seed + place)
            for place, (name, shape) in enumerate(shapes.items())
        }
        valid = torch.tensor([TOKENS - image % 2 for image in range(images)])[:, None]
        mask = (torch.arange(TOKENS) < valid).long()
        return drawn | dict.fromkeys(masks, mask)

    return draw


def both(texts: Texts, images: int) -> dict[str, Any]:
    """The texts of the prompts and of the negative ones."""
    negative = {f"negative_{name}": text for name, text in texts(images, 2).items()}
    return texts(images, 1) | negative


def awake(network: nn.Module) -> None:
    """Draw the weights that are zero in a new network: shut gates would hide the text's effect."""
    for name, weight in network.named_parameters():
        if not name.endswith("bias") and not bool(weight.any()):
            nn.init.normal_(weight, std=0.2)


def ready(pipe: Any) -> Any:
    """A pipeline whose networks do not drop out and whose gates are open."""
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            awake(part.eval())
    return pipe


def steps(images: int) -> dict[str, Any]:
    """The arguments that every call has."""
    return {
        "num_inference_steps": STEPS,
        "output_type": "latent",
        "generator": generators(images),
    }


def guided(
    pipe: Any,
    texts: Texts,
    fixed: Fixed = lambda images: PIXELS,
    *,
    name: str = "guidance_scale",
    scale: float = SCALE,
    off: float = 1.0,
    batches: tuple[int, ...] = (1, 2),
) -> Small:
    """A pipeline that guides by a scale and takes the negative prompts under `negative_` names."""

    def call(images: int) -> dict[str, Any]:
        return steps(images) | fixed(images) | both(texts, images) | {name: scale}

    return Small(
        ready(pipe),
        call,
        off=lambda images: {name: off},
        another=lambda images: texts(images, 3),
        batches=batches,
    )


def pictures(images: int, seed: int = 5) -> torch.Tensor:
    """Random pictures with values between 0 and 1."""
    return torch.sigmoid(rows(images, 3, *PIXELS.values(), seed=seed))


def holes(images: int) -> torch.Tensor:
    """Masks whose left half is to be painted."""
    mask = torch.zeros(images, 1, *PIXELS.values())
    mask[..., : PIXELS["width"] // 2] = 1.0
    return mask


def photos(images: int, mode: str = "RGB", side: int = PIXELS["width"]) -> list[Image.Image]:
    """The same pictures for classes that take no tensors."""
    drawn = (255 * pictures(images)).byte().movedim(1, -1).numpy()
    return [Image.fromarray(picture).convert(mode).resize((side, side)) for picture in drawn]


def painted(images: int) -> dict[str, Any]:
    """The arguments of a pipeline that begins with a picture: 3 of 4 steps."""
    return PIXELS | {"image": pictures(images), "strength": 0.75}


def repainted(images: int) -> dict[str, Any]:
    """The arguments of a pipeline that paints a part of a picture anew."""
    return painted(images) | {"mask_image": holes(images)}


def without_noise(vae: Any) -> Any:
    """An autoencoder whose latents have next to no variance: some classes draw from it unseeded."""
    last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    channels = last.weight.shape[0] // 2
    with torch.no_grad():
        last.weight[channels:] = 0.0
        last.bias[channels:] = -30.0
    return vae


def vae(channels: int = CHANNELS, *, levels: int = 4) -> AutoencoderKL:
    """The usual autoencoder, by default 8 times smaller."""
    return without_noise(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(4,) * levels,
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=2,
            shift_factor=0.0,
        )
    )


def _video_sizes(channels: int, levels: int) -> dict[str, Any]:
    return {
        "base_dim": 4,
        "z_dim": channels,
        "dim_mult": [1] * levels,
        "num_res_blocks": 1,
        "temperal_downsample": [False] * (levels - 1),
        "latents_mean": [0.0] * channels,
        "latents_std": [1.0] * channels,
    }


def qwen_vae() -> AutoencoderKLQwenImage:
    """The autoencoder of Qwen-Image, which takes an image for a video of one frame."""
    return without_noise(AutoencoderKLQwenImage(**_video_sizes(CHANNELS, 4)))


def wan_vae(levels: int) -> AutoencoderKLWan:
    """The autoencoder of Wan, which some pipelines of images use."""
    return without_noise(
        AutoencoderKLWan(**_video_sizes(CHANNELS, levels), scale_factor_spatial=2 ** (levels - 1))
    )


def shifted() -> FlowMatchEulerDiscreteScheduler:
    """A flow scheduler that is shifted by the size of the picture."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def lists(images: int, seed: int) -> dict[str, Any]:
    """A list of embeddings of as many tokens as the prompt has."""
    drawn = rows(images, TOKENS + 1, WIDTH, seed=10 * seed)
    return {"prompt_embeds": [text[: TOKENS + image % 2] for image, text in enumerate(drawn)]}


def with_bools(texts: Texts) -> Texts:
    """The same texts with masks of true and false."""

    def draw(images: int, seed: int) -> dict[str, Any]:
        drawn = texts(images, seed)
        return drawn | {"prompt_embeds_mask": drawn["prompt_embeds_mask"].bool()}

    return draw
