"""How training calls a pipeline: to learn from it, or to judge it.

What a call is recorded for is in `trajectories.py` and `noised_images.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sdbench.models.pipeline import Pipeline, guidance_arguments, invoke


class EnoughSeen(Exception):
    """Ends a pipeline call of which enough was seen."""


def call_pipeline(
    pipe: Pipeline,
    prompts: Sequence[str],
    generators: Sequence[torch.Generator] | None,
    *,
    guidance_scale: float,
    num_steps: int,
    output_type: str,
    arguments: Mapping[str, Any] | None = None,
) -> Any:
    """Call a pipeline on prompts, one image for each.

    Args:
        pipe: the pipeline, as it is now.
        prompts: of the images.
        generators: of each image's noise; None where the noise does not matter.
        guidance_scale: w.
        num_steps: of the loop.
        output_type: diffusers' own word, "pt" or "latent".
        arguments: further ones; they may replace the prompts and the guidance by others.

    Returns:
        What the pipeline returns.
    """
    asked: dict[str, Any] = {"prompt": list(prompts)}
    if generators is not None:
        asked["generator"] = list(generators)
    asked |= guidance_arguments(pipe, guidance_scale, rows=len(prompts))
    asked |= arguments or {}

    # Last, since the further arguments may not change what is recorded of a call.
    asked |= {"num_inference_steps": num_steps, "output_type": output_type}
    return invoke(pipe, asked)
