"""The times of a denoiser's training steps."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def spread_timesteps(
    noise_scheduler: Any, count: int, generator: torch.Generator
) -> Int[Tensor, " count"]:
    """One timestep from each of `count` equal parts of the schedule, in random order.

    Each is uniform, as if drawn by itself, but the loss of a batch scatters less (Kingma et al.
    2021, arXiv 2107.00630).
    """
    steps = len(noise_scheduler.alphas_cumprod)
    # In double precision, where the last place stays below the schedule's end.
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    places = (torch.arange(count) + offset) / count
    return (places[torch.randperm(count, generator=generator)] * steps).long()
