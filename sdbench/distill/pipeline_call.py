"""How training calls a pipeline: to learn from it, or to judge it.

What a call is recorded for is in `trajectories.py` and `noised_images.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from sdbench.models.pipeline import Pipeline, guidance_arguments, invoke
from sdbench.variants.hooks import call_replaced
from sdbench.variants.rows import first_tensor, map_tensors


class EnoughSeen(Exception):
    """Ends a pipeline call of which enough was seen."""


def output_as_given(denoiser: nn.Module) -> AbstractContextManager[None]:
    """While it holds, a denoiser's output has the dtype of the latents that it is given.

    accelerate makes it float32, and the autoencoder of a pipeline in half precision does not take
    what the loop makes of that.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            dtype = first_tensor((args, kwargs)).dtype
            return map_tensors(original(*args, **kwargs), lambda tensor: tensor.to(dtype))

        return call

    return call_replaced(denoiser, wrap)


def with_inputs(
    call: tuple[tuple[Any, ...], dict[str, Any]], sample: Float[Tensor, "rows ..."], share: float
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A denoiser's call with other latents at another timestep.

    Args:
        call: arguments and keyword arguments.
        sample: the other latents.
        share: the other timestep over the one of the call; some denoisers count from 0 to 1.
    """
    args, kwargs = call
    own_sample = first_tensor(call)
    own_timestep: Shaped[Tensor, "*shape"] = args[1] if len(args) > 1 else kwargs["timestep"]

    timestep = own_timestep * share
    if not own_timestep.is_floating_point():
        timestep = timestep.round().to(own_timestep.dtype)
    replacements = {id(own_sample): sample, id(own_timestep): timestep}
    changed: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(
        call, lambda tensor: replacements.get(id(tensor), tensor)
    )
    return changed


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
