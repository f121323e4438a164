"""What sdbench uses of a pipeline of diffusers and of its scheduler, for the reader and the type checker.

The classes are protocols: stock pipelines have all of this, and nothing has to inherit from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Shaped
from torch import Tensor


class Scheduler(Protocol):
    """A noise scheduler: it lists the timesteps of a loop and takes the loop's steps."""

    timesteps: Shaped[Tensor, " timesteps"]

    @property
    def config(self) -> Mapping[str, Any]:
        """Its settings."""
        ...

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Choose the timesteps of the next loop."""
        ...

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """From the model's prediction to the next latents."""
        ...


class Pipeline(Protocol):
    """A diffusion pipeline: called with prompts, it runs a denoising loop and returns images."""

    scheduler: Scheduler
    name_or_path: str

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def components(self) -> Mapping[str, Any]:
        """Its networks, its scheduler and what else it was made of, by name."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate images."""
        ...


class LatentPipeline(Pipeline, Protocol):
    """A pipeline that is made like Stable Diffusion: a UNet, an autoencoder and a text encoder."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
