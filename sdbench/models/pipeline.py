"""What sdbench uses of a pipeline of diffusers and of its scheduler.

The classes are protocols, for the reader and the type checker: stock pipelines have all of this,
and nothing has to inherit from them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from sdbench.models.formula import own_scale
from sdbench.models.modular import (
    SCALE,
    asked,
    block_inputs,
    guiders_of,
    is_modular,
    needs_negative_prompt,
    output_of,
    scale_name,
)


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


TRUE_SCALE = "true_cfg_scale"
"""What pipelines call the guidance scale whose models were also trained on one."""
NAMED = ("unet", "transformer", "transformer_2")
"""What most pipelines call the networks of their loop."""
TIMES = ("timestep", "timesteps", "timestep_ratio", "t", "r")
"""What such networks call the argument that says how noisy their latents are."""


def denoisers_of(pipe: Pipeline) -> list[nn.Module]:
    """The networks that a pipeline calls in its loop: one, or two that share the steps.

    Most are called `unet` or `transformer`; a further one of the same class belongs to them. Where
    they are called otherwise (`prior`, `decoder`), they are those that are told the time. A
    ControlNet is told it, too, but only feeds another one. The networks of further loops are last.

    Raises:
        ValueError: the pipeline has none.
    """
    denoisers = _of_first_loop(pipe)
    if not denoisers:
        raise ValueError(
            f"{type(pipe).__name__} has no network that predicts noise: expected a unet, a "
            "transformer or another module that takes a timestep"
        )
    return denoisers + _of_further_loops(pipe)


def schedulers_of(pipe: Pipeline) -> list[Scheduler]:
    """The schedulers of a pipeline's loops, one for each: unCLIP has several, most have one.

    What other schedulers a pipeline of one loop has only add noise, or run the other way.

    Raises:
        ValueError: the pipeline has none.
    """
    found = _schedulers(pipe)
    if not found:
        raise ValueError(f"{type(pipe).__name__} has no scheduler of its own")
    own = getattr(pipe, "scheduler", None)
    return found if own is None or _of_further_loops(pipe) else [own]


def _schedulers(pipe: Pipeline) -> list[Scheduler]:
    """Every scheduler that a pipeline has, the one that is called so first."""
    own = getattr(pipe, "scheduler", None)
    others = [
        part
        for part in getattr(pipe, "components", {}).values()
        if hasattr(part, "set_timesteps") and hasattr(part, "step") and part is not own
    ]
    return others if own is None else [own, *others]


def _of_first_loop(pipe: Pipeline) -> list[nn.Module]:
    candidates = [getattr(pipe, name, None) for name in NAMED]
    named = [module for module in candidates if module is not None]
    return named + [part for part in _other_networks(pipe) if _belongs(part, named)]


def _of_further_loops(pipe: Pipeline) -> list[nn.Module]:
    """The networks that are told the time in a loop of their own, under their own scheduler."""
    if len(_schedulers(pipe)) < 2:
        return []
    known = {id(network) for network in _of_first_loop(pipe)}
    others = _other_networks(pipe)
    return [part for part in others if id(part) not in known and is_told_time(part)]


def _other_networks(pipe: Pipeline) -> list[nn.Module]:
    """The networks of a pipeline that have none of the usual names."""
    parts = getattr(pipe, "components", {})
    return [
        part
        for name, part in parts.items()
        if isinstance(part, nn.Module) and name not in NAMED and "controlnet" not in name
    ]


def _belongs(network: nn.Module, named: list[nn.Module]) -> bool:
    """Whether a network is a denoiser beside those with the usual names, or where there is none."""
    if not named:
        return is_told_time(network)
    kinds = {type(module) for module in named}
    return type(network) in kinds and all(network is not module for module in named)


def is_told_time(network: nn.Module) -> bool:
    """Whether a network takes a timestep."""
    taken = inspect.signature(type(network).forward).parameters
    return any(name in taken for name in TIMES)


def parts_of(pipe: Pipeline) -> list[Pipeline]:
    """The pipelines that a pipeline runs one after another, or itself where it runs no other."""
    parts = [
        part
        for name, part in getattr(pipe, "__dict__", {}).items()
        if isinstance(part, DiffusionPipeline) and not name.startswith("_")
    ]
    return [pipe] if not parts else cast(list[Pipeline], parts)


def networks_of(pipe: Pipeline) -> dict[str, nn.Module]:
    """All networks that a pipeline is made of, by the names of its components."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def denoiser_of(pipe: Pipeline) -> nn.Module:
    """The network that a pipeline calls in its loop; the first one where there are two."""
    return denoisers_of(pipe)[0]


def guidance_arguments(
    pipe: Pipeline, guidance_scale: float, *, rows: int, negative_prompt: str | None = None
) -> dict[str, Any]:
    """The arguments by which a call asks for guidance.

    Flux and Qwen-Image also take a scale that the model was trained on. Such a pipeline guides by
    `true_cfg_scale`, and only if it is given a negative prompt. Of a pipeline with guiders the
    scale is theirs, and `invoke` hands it on.

    Args:
        pipe: a guided pipeline.
        guidance_scale: w of `u + w (c - u)`; a pipeline that is known to take another number for it
            gets that (`sdbench.models.formula`).
        rows: images of the call.
        negative_prompt: of every image.
    """
    has_true_scale = TRUE_SCALE in call_parameters(pipe)
    if negative_prompt is None and (has_true_scale or needs_negative_prompt(pipe)):
        negative_prompt = ""

    arguments: dict[str, Any] = {}
    if has_true_scale:
        arguments[TRUE_SCALE] = guidance_scale
    else:
        arguments[SCALE] = own_scale(pipe, guidance_scale)
    if negative_prompt is not None:
        arguments["negative_prompt"] = [negative_prompt] * rows
    return arguments


def call_parameters(pipe: Pipeline) -> set[str]:
    """Names of the arguments that a pipeline's call takes, those of its guiders included."""
    own = _own_parameters(pipe)
    return own if SCALE in own else own | {scale_name(guider) for guider in guiders_of(pipe)}


def _own_parameters(pipe: Pipeline) -> set[str]:
    if is_modular(pipe):
        return block_inputs(pipe)
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
    """Call a pipeline: the only place that does. Studies come here by `sdbench.study.call`.

    Raises:
        ValueError: a guidance scale for a guider that has none, or latents that are not there.
    """
    with asked(pipe, arguments, _own_parameters(pipe)) as taken:
        returned = pipe(**taken)
    return output_of(pipe, returned, arguments)
