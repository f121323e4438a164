"""The embedding of w: how a UNet is given the guidance scale of a student of a range of scales.

A projection stands in diffusers' own place for it (`time_cond_proj`) and adds the embedding of w to
that of the timestep. Which student needs one is in `students.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sdbench.models.pipeline import Pipeline
from sdbench.models.student_layers import read_weights

WIDTH = 256  # of the embedding of w


def takes_guidance(denoiser: Any) -> bool:
    """Whether a denoiser takes a guidance scale as an input, as Flux does."""
    return bool(denoiser.config.get("guidance_embeds", False))


def place_of_projection(pipe: Pipeline, denoiser: Any) -> Any:
    """The layer of a UNet that takes the projection of the embedding of w.

    Raises:
        ValueError: a pipeline that has no such embedding, or a denoiser that has a projection
            already.
    """
    embedding: Any = getattr(denoiser, "time_embedding", None)
    if not hasattr(pipe, "get_guidance_scale_embedding") or not hasattr(embedding, "cond_proj"):
        raise ValueError(
            f"{type(pipe).__name__} has no `time_cond_proj` to take w: learn one scale only"
        )
    if embedding.cond_proj is not None:
        raise ValueError(
            f"the {type(denoiser).__name__} already takes an embedding of the guidance scale"
        )
    return embedding


class Projection(nn.Linear):
    """Of the embedding of w less that of w = 1, so that at w = 1 it adds nothing."""

    def forward(self, embedding: Float[Tensor, "rows width"]) -> Float[Tensor, "rows channels"]:
        """Project what is left of it after that of w = 1."""
        # That of w = 1 is the sines of 0, which are 0, and the cosines of 0, which are 1.
        sines, cosines = embedding.chunk(2, dim=1)
        return super().forward(torch.cat([sines, cosines - 1], dim=1))


def add_projection(pipe: Pipeline, denoiser: Any) -> Projection:
    """Give a UNet the projection of the embedding of w, all zeros: it then changes nothing.

    As long as its configuration has no `time_cond_proj_dim`, the pipeline guides as before and
    passes no embedding.

    Raises:
        ValueError: as `place_of_projection` says.
    """
    embedding = place_of_projection(pipe, denoiser)
    weight = embedding.linear_1.weight
    projection = Projection(
        WIDTH, embedding.linear_1.in_features, bias=False, device=weight.device, dtype=weight.dtype
    )
    # All zeros, so that training begins at the base.
    nn.init.zeros_(projection.weight)
    embedding.cond_proj = projection
    return projection


def remove_projection(denoiser: Any) -> None:
    """Take the projection off again."""
    denoiser.time_embedding.cond_proj = None


def load_projection(pipe: Pipeline, denoiser: Any, file: Path) -> None:
    """Give a UNet the projection of a student.

    Raises:
        ValueError: a file that holds none for this UNet, or as `place_of_projection` says; nothing
            is changed then.
    """
    weight = read_weights(file).get("weight")
    width = place_of_projection(pipe, denoiser).linear_1.in_features
    if weight is None or weight.shape != (width, WIDTH):
        raise ValueError(f"'{file}' holds no projection of {WIDTH} to {width} values")
    with torch.no_grad():
        add_projection(pipe, denoiser).weight.copy_(weight)


def embedded(pipe: Pipeline, scale: Float[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
    """The embedding of guidance scales, as stock pipelines make it: of w - 1, on the CPU."""
    return pipe.get_guidance_scale_embedding(scale - 1, embedding_dim=WIDTH)
