"""The networks that a pipeline runs in its loop, and how a call asks for guidance."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from sdbench.models.pipeline import Pipeline


def denoisers_of(pipe: Pipeline) -> list[nn.Module]:
    """The networks that a pipeline calls in its loop: one, or two that share the steps between them.

    Raises:
        ValueError: the pipeline has none.
    """
    candidates = [getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2")]
    denoisers = [module for module in candidates if module is not None]
    if not denoisers:
        raise ValueError(f"{type(pipe).__name__} has neither a unet nor a transformer")
    return denoisers


def denoiser_of(pipe: Pipeline) -> nn.Module:
    """The network that a pipeline calls in its loop; the first one where there are two."""
    return denoisers_of(pipe)[0]


def guidance_arguments(
    pipe: Pipeline, guidance_scale: float, *, rows: int, negative_prompt: str | None = None
) -> dict[str, Any]:
    """The arguments by which a call asks for guidance.

    Flux and Qwen-Image also take a scale that the model was trained on. Such a pipeline guides by
    `true_cfg_scale`, and only if it is given a negative prompt.

    Args:
        pipe: a guided pipeline.
        guidance_scale: w.
        rows: images of the call.
        negative_prompt: of every image.
    """
    has_true_scale = "true_cfg_scale" in inspect.signature(type(pipe).__call__).parameters
    if negative_prompt is None and has_true_scale:
        negative_prompt = ""

    arguments: dict[str, Any] = {}
    arguments["true_cfg_scale" if has_true_scale else "guidance_scale"] = guidance_scale
    if negative_prompt is not None:
        arguments["negative_prompt"] = [negative_prompt] * rows
    return arguments
