"""What sdbench uses of a pipeline of diffusers and of its scheduler.

The classes are protocols, for the reader and the type checker: stock pipelines have all of this,
and nothing has to inherit from them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


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
    vae_scale_factor: int

    @property
    def guidance_scale(self) -> float:
        """The scale of the call that is running, or of the last one."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def components(self) -> Mapping[str, Any]:
        """Its networks, its scheduler and what else it was made of, by name."""
        ...

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move its networks to a device."""
        ...

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Choose how it shows its progress."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate images."""
        ...

    # Not every pipeline has the method that follows: ask for it with `hasattr` before its use.

    def get_guidance_scale_embedding(
        self, w: Float[Tensor, " rows"], embedding_dim: int
    ) -> Float[Tensor, "rows width"]:
        """Sines and cosines of w, as a UNet with `time_cond_proj` takes them."""
        ...


class LatentPipeline(Pipeline, Protocol):
    """A pipeline that is made like Stable Diffusion: a UNet, an autoencoder and a text encoder."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any


class TransformerPipeline(Pipeline, Protocol):
    """A pipeline with a transformer, which says where in its loop it is."""

    transformer: Any
    current_timestep: Any


class LoraPipeline(Pipeline, Protocol):
    """A pipeline that can load a LoRA next to its weights."""

    def load_lora_weights(self, *args: Any, **kwargs: Any) -> None:
        """Put the layers of a LoRA next to the weights."""
        ...

    def unload_lora_weights(self) -> None:
        """Take them off again."""
        ...


def denoisers_of(pipe: Pipeline) -> list[nn.Module]:
    """The networks that a pipeline calls in its loop: one, or two that share the steps.

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
    has_true_scale = "true_cfg_scale" in call_parameters(pipe)
    if negative_prompt is None and has_true_scale:
        negative_prompt = ""

    arguments: dict[str, Any] = {}
    arguments["true_cfg_scale" if has_true_scale else "guidance_scale"] = guidance_scale
    if negative_prompt is not None:
        arguments["negative_prompt"] = [negative_prompt] * rows
    return arguments


def call_parameters(pipe: Pipeline) -> set[str]:
    """Names of the arguments that a pipeline's call takes."""
    return {
        parameter.name
        for parameter in method_parameters(type(pipe), "__call__")
        if parameter.kind is not inspect.Parameter.POSITIONAL_ONLY
    }


def method_parameters(kind: type, method: str) -> list[inspect.Parameter]:
    """What a method takes, `self` left out, its positional parameters in their order.

    A subclass that takes `**kwargs` hands on what it does not name, so its ancestors' parameters
    are its own as well, up to the first ancestor that takes no `**kwargs`.

    Args:
        kind: a class.
        method: a method of it.
    """
    parameters: dict[str, inspect.Parameter] = {}
    for ancestor in kind.__mro__:
        if method not in vars(ancestor):
            continue

        _, *taken = inspect.signature(getattr(ancestor, method)).parameters.values()
        kinds = {parameter.kind for parameter in taken}
        for parameter in taken:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                parameters.setdefault(parameter.name, parameter)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return list(parameters.values())


def invoke(pipe: Pipeline, arguments: Mapping[str, Any]) -> Any:
    """Call a pipeline: the only place that does. Studies come here by `sdbench.study.call`."""
    return pipe(**arguments)
