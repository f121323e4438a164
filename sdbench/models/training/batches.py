"""What a step of training gets: its random numbers, its pictures and its captions as tensors."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import CLIPTokenizer


def generators(seed: int, stage: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The random numbers of one step, the same whether or not the run was resumed before it.

    Args:
        seed: of the run.
        stage: its number, by which its random numbers differ from those of other stages.
        step: its number in the stage.
    """
    rng = np.random.default_rng([seed, stage, step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def pixels(
    images: UInt8[np.ndarray, "n height width 3"], device: torch.device
) -> Float[Tensor, "n 3 height width"]:
    """Pictures as values in [0, 1]."""
    values = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
    return values.contiguous(memory_format=torch.channels_last)


def tokens(
    tokenizer: CLIPTokenizer, texts: list[str], device: torch.device
) -> Int[Tensor, "n length"]:
    """Captions as tokens, each filled up to the tokenizer's length."""
    return tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids.to(device)
