"""What a pipeline's call made: images, videos or audio, each kind in one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.models.safety import flags_of

FIELDS = {
    "image": ("images", "image"),
    "video": ("frames", "video", "videos"),
    "audio": ("audios",),
}
"""How outputs of pipelines name what they made, by its kind. A video may come with its sound."""


@dataclass(frozen=True)
class Made:
    """What a call made.

    Attributes:
        images: in [0, 1], (n, 3, height, width); of videos (n, frames, 3, height, width); of audio
            its samples; or the latents.
        flagged: for each image whether a safety checker put a placeholder in its place.
        kind: what the pipeline makes: "image", "video" or "audio", also where these are latents.
    """

    images: Float[Tensor, "n ..."]
    flagged: tuple[bool, ...] = ()
    kind: str = "image"


def made_by(name: str, output: Any, *, decoded: bool, pairs: int) -> Made:
    """What an output of a pipeline holds.

    Args:
        name: of the pipeline, for an error.
        output: what its call returned.
        decoded: whether it was asked for tensors in [0, 1], and not for latents.
        pairs: of the call.

    Raises:
        ValueError: it holds nothing that a study measures, or not one for every pair.
    """
    kind, values = _found(output)
    if values is None:
        made = ", ".join(output) if isinstance(output, dict) else type(output).__name__
        raise ValueError(f"{name} makes {made}: expected images, videos or audio")
    if not decoded:
        return Made(values, flags_of(output), kind)

    samples = values if kind == "image" else torch.as_tensor(_stacked(values))
    if kind == "video":
        samples = _video(name, samples, pairs)
    if len(samples) != pairs:
        raise ValueError(
            f"{name} made {len(samples)} {kind}s for {pairs} (prompt, seed) pairs: "
            "expected one for each"
        )
    return Made(samples, flags_of(output), kind)


def _found(output: Any) -> tuple[str, Any]:
    """The kind of what an output holds, and its values; None where it holds none."""
    for kind, names in FIELDS.items():
        for name in names:
            values = getattr(output, name, None)
            if values is not None:
                return kind, values
    return "", None


def _stacked(values: Any) -> Any:
    """A list of tensors as one."""
    return torch.stack(list(values)) if isinstance(values, list | tuple) else values


def _video(
    name: str, values: Float[Tensor, ...], pairs: int
) -> Float[Tensor, "n frames 3 height width"]:
    """Videos, of which a pipeline that makes one at a time may return its frames alone.

    Raises:
        ValueError: they are of another form.
    """
    videos = values[None] if values.ndim == 4 and pairs == 1 else values
    if videos.ndim != 5 or videos.shape[2] != 3 or not videos.is_floating_point():
        raise ValueError(
            f"{name} made {values.dtype} of shape {tuple(values.shape)}; "
            "videos are floats of shape (pairs, frames, 3, height, width)"
        )
    return videos
