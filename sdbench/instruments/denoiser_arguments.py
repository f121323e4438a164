"""What a pipeline calls its denoiser with, derived from the denoiser's configuration alone.

Values are zeros and ones: the call is counted, or its memory traced, not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def arguments(
    denoiser: Any,
    *,
    rows: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    vae_factor: int,
    tokens: int | None = None,
) -> dict[str, Any]:
    """The arguments of one call: the right shapes, zeros and ones, on torch's default device.

    Args:
        denoiser: the UNet of Stable Diffusion 1, 2 or XL, or the transformer of Stable Diffusion 3,
            Flux or PixArt.
        rows: of the call.
        height: of the images, in pixels.
        width: of the images, in pixels.
        dtype: of the latents and the text embeddings.
        vae_factor: pixels per latent along one side.
        tokens: of the text; without it, what the class's pipeline has by default.

    Raises:
        ValueError: an unknown denoiser, no rows, or a size that VAE factor times patch size does
            not divide.
    """
    name = type(denoiser).__name__
    if name not in _CALLS:
        raise ValueError(f"no call is known for a {name}; there are calls for {', '.join(_CALLS)}")
    kind = _CALLS[name]
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")

    patch = kind.patch(denoiser.config)
    multiple = vae_factor * patch
    if min(height, width) < 1 or height % multiple or width % multiple:
        raise ValueError(
            f"height and width must be multiples of {multiple} (VAE factor {vae_factor} x patch "
            f"size {patch}), got {height} x {width}"
        )

    length = kind.tokens if tokens is None else tokens
    size = _Size(rows, height // vae_factor, width // vae_factor, length, dtype)
    return kind.make(denoiser.config, size) | {"return_dict": False}


@dataclass(frozen=True)
class _Size:
    """Of a call: its rows, height and width of the latents, length of the text, dtype of both."""

    rows: int
    height: int
    width: int
    tokens: int
    dtype: torch.dtype

    def zeros(self, *shape: int) -> Float[Tensor, "rows ..."]:
        return torch.zeros(self.rows, *shape, dtype=self.dtype)


def _unet(config: Any, size: _Size) -> dict[str, Any]:
    """Of Stable Diffusion 1 and 2, and of XL, which gets sizes and a pooled text, too.

    Source: Podell et al. 2023, arXiv 2307.01952, section 2.2.
    """
    if config.addition_embed_type not in (None, "text_time"):
        raise ValueError(
            f"no call is known for a UNet with addition_embed_type {config.addition_embed_type!r}"
        )

    call = {
        "sample": size.zeros(config.in_channels, size.height, size.width),
        "timestep": torch.zeros((), dtype=torch.int64),
        "encoder_hidden_states": size.zeros(
            size.tokens, config.encoder_hid_dim or config.cross_attention_dim
        ),
    }
    if config.addition_embed_type is None:
        return call

    # Height and width of the original, top and left of the crop, height and width of the target.
    numbers = 6
    pooled = config.projection_class_embeddings_input_dim - numbers * config.addition_time_embed_dim
    return call | {
        "added_cond_kwargs": {"text_embeds": size.zeros(pooled), "time_ids": size.zeros(numbers)}
    }


def _sd3(config: Any, size: _Size) -> dict[str, Any]:
    return {
        "hidden_states": size.zeros(config.in_channels, size.height, size.width),
        "timestep": torch.zeros(size.rows),
        "encoder_hidden_states": size.zeros(size.tokens, config.joint_attention_dim),
        "pooled_projections": size.zeros(config.pooled_projection_dim),
    }


def _flux(config: Any, size: _Size) -> dict[str, Any]:
    """The pipeline packs 2 x 2 latents into one token."""
    # A token's place is three numbers, the same in every row.
    places = (size.height // 2) * (size.width // 2)
    return {
        "hidden_states": size.zeros(places, config.in_channels),
        "timestep": size.zeros(),
        "guidance": torch.zeros(size.rows) if config.guidance_embeds else None,
        "encoder_hidden_states": size.zeros(size.tokens, config.joint_attention_dim),
        "pooled_projections": size.zeros(config.pooled_projection_dim),
        "txt_ids": torch.zeros(size.tokens, 3, dtype=size.dtype),
        "img_ids": torch.zeros(places, 3, dtype=size.dtype),
    }


def _pixart(config: Any, size: _Size) -> dict[str, Any]:
    return {
        "hidden_states": size.zeros(config.in_channels, size.height, size.width),
        "timestep": torch.zeros(size.rows, dtype=torch.int64),
        "encoder_hidden_states": size.zeros(size.tokens, config.caption_channels),
        "encoder_attention_mask": torch.ones(size.rows, size.tokens, dtype=torch.int64),
        # Sigma ignores them.
        "added_cond_kwargs": {"resolution": size.zeros(2), "aspect_ratio": size.zeros(1)},
    }


@dataclass(frozen=True)
class _Call:
    """How a class of denoisers is called.

    Args:
        make: its arguments, from its configuration and the size.
        tokens: length of the text, as its pipeline has it by default.
        patch: latents along one side of what it takes as one, from its configuration.
    """

    make: Callable[[Any, _Size], dict[str, Any]]
    tokens: int
    patch: Callable[[Any], int]


_CALLS = {
    "UNet2DConditionModel": _Call(_unet, 77, lambda config: 1),
    # The tokens of CLIP and of T5.
    "SD3Transformer2DModel": _Call(_sd3, 77 + 256, lambda config: config.patch_size),
    # The size of a patch is not in Flux's configuration.
    "FluxTransformer2DModel": _Call(_flux, 512, lambda config: 2),
    "PixArtTransformer2DModel": _Call(_pixart, 300, lambda config: config.patch_size),
}
