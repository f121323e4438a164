"""What a pipeline is: digests of everything in it that decides its images.

A study's calls are named by them, so that what was measured with one scheduler or one checkpoint is
never continued with another. Where a pipeline runs, how its weights lie in memory and what wraps
its modules have no part in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from sdbench.models.bare_weights import bare_module, bare_name
from sdbench.models.modular import block_names
from sdbench.models.pipeline import Pipeline

PLACES = 4093  # of a row; prime, so that no layer's rows fall on each other
WORD = 8  # bytes

_PROCESSORS = ("image_processor", "video_processor")
_TOKENIZER_SETTINGS = ("model_max_length", "padding_side", "truncation_side")
_SCHEDULER_STATE = ("betas", "alphas_cumprod", "shift")


def identity(pipe: Pipeline, *, full: bool = False) -> dict[str, str]:
    """The pipeline's class, and for each component its class with a digest.

    Args:
        pipe: as its calls will find it: a LoRA that is loaded or fused counts.
        full: take SHA-256 of the weights, at about 0.3 GB a second on a CPU. The sums that are
            taken otherwise need a tenth of the time and see every bit, but could be matched on
            purpose.

    Returns:
        By the component's name; `pipeline` is the class with its own settings.
    """
    settings = {name: value for name, value in _config(pipe).items() if not _is_component(value)}
    processors = [_config(getattr(pipe, name, None)) for name in _PROCESSORS]
    blocks = block_names(pipe)
    own = [settings, processors, blocks] if blocks else [settings, processors]
    found = {"pipeline": _named(pipe, own)}
    for name, covered in sorted(pipe.components.items()):
        if covered is not None:
            component = bare_module(covered)
            found[name] = _named(component, _content(component, full=full))
    return found


def _named(component: Any, content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=in_words)
    return f"{type(component).__name__} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def in_words(value: Any) -> Any:
    """A setting that JSON has no form for, the same in every process."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    # An object without words of its own says where it lies in memory.
    return type(value).__name__ if " at 0x" in repr(value) else repr(value)


def _content(component: Any, *, full: bool) -> Any:
    """What decides what a component computes."""
    if isinstance(component, nn.Module):
        switches = [_config(component), _switches(component), _adapters(component)]
        return [switches, _weights(component, full=full)]
    if hasattr(component, "set_timesteps"):
        return [_config(component), _own_state(component)]
    if hasattr(component, "get_vocab"):
        vocabulary = sorted(component.get_vocab().items())
        settings = [_plain(component, name) for name in _TOKENIZER_SETTINGS]
        return [vocabulary, component.special_tokens_map, settings]
    return _config(component)


def _config(component: Any) -> dict[str, Any]:
    """The settings of a component, without those that say where it comes from."""
    config = getattr(component, "config", component)
    if hasattr(config, "to_dict"):  # of transformers
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return {}
    origin = {"architectures", "dtype", "torch_dtype", "transformers_version"}
    return {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and name not in origin
    }


def _is_component(value: Any) -> bool:
    """Whether a setting names a class and its library, as a pipeline's components do."""
    return isinstance(value, list | tuple)


def _own_state(scheduler: Any) -> dict[str, Any]:
    """What a scheduler's noise levels are, where its settings do not say it.

    Computed levels are no part of it: their last digits depend on the processor.
    """
    try:
        anew = type(scheduler).from_config(scheduler.config)
    except (AttributeError, TypeError, ValueError):  # a class that is not made that way
        anew = None
    state = {name: _plain(scheduler, name) for name in _SCHEDULER_STATE}
    return {name: value for name, value in state.items() if value != _plain(anew, name)}


def _plain(component: Any, name: str) -> Any:
    """An attribute that may be missing, as JSON."""
    value = getattr(component, name, None)
    return value.tolist() if isinstance(value, Tensor) else value


def _switches(module: nn.Module) -> list[Any]:
    """What diffusers' modules were set to: FreeU's factors, tiles, how attention is computed."""
    found: list[Any] = []
    for name, part in module.named_modules():
        # Others may keep there what a call left behind.
        if type(part).__module__.startswith("diffusers."):
            plain = {key: value for key, value in vars(part).items() if _is_switch(key, value)}
            processor = type(getattr(part, "processor", None)).__name__
            found.append([bare_name(name), type(part).__name__, processor, plain])
    return found


def _is_switch(name: str, value: Any) -> bool:
    # What is only for training; a network made by hand is in it, a loaded one is not.
    if name.startswith("_") or name in ("training", "gradient_checkpointing"):
        return False
    return isinstance(value, bool | int | float | str)


def _adapters(module: nn.Module) -> list[Any]:
    """Which LoRAs are on, and how strongly: no weight says so."""
    layers = [part for part in module.modules() if hasattr(part, "active_adapters")]
    scaled = [part for part in layers if isinstance(getattr(part, "scaling", None), dict)]
    return [[part.active_adapters, part.scaling, part.disable_adapters] for part in scaled]


def _weights(module: nn.Module, *, full: bool) -> list[Any]:
    """Name and form of every tensor of a module, and a digest of all their contents."""
    named = [part for key, value in _state(module) for part in plain_tensors(key, value)]
    forms = [[name, str(part.dtype), list(part.shape)] for name, part in named]

    found = hashlib.sha256()
    for _, part in named:
        if not part.is_meta:
            content = _bytes(part) if full else _sums(part)
            found.update(content.cpu().numpy().tobytes())
    return [forms, found.hexdigest()]


def _state(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The module's state by names that no wrapper changes."""
    for key, value in module.state_dict().items():
        yield bare_name(key), value


def plain_tensors(name: str, value: Any) -> Iterator[tuple[str, Shaped[Tensor, "*shape"]]]:
    """The plain tensors of an entry: quantised ones hold several, packed ones are tuples."""
    if isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from plain_tensors(f"{name}.{index}", item)
    elif isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):
        for inner in value.__tensor_flatten__()[0]:
            yield from plain_tensors(f"{name}.{inner}", getattr(value, inner))
    elif isinstance(value, Tensor) and value.is_quantized:
        yield name, value.dequantize()  # with its scale
    elif isinstance(value, Tensor):
        yield name, value.detach()


def _bytes(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, " bytes"]:
    """The bytes of a tensor in the order of its elements, however it lies in memory."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _sums(tensor: Shaped[Tensor, "*shape"]) -> Int64[Tensor, " places"]:
    """Sums of a tensor's words by their places in rows; a small tensor is its own sums.

    A change of any bit changes a sum. So does an exchange, unless it is by whole rows.
    """
    flat = _bytes(tensor)
    if flat.storage_offset() % WORD:
        flat = flat.clone()
    flat = nn.functional.pad(flat, (0, -len(flat) % WORD)) if len(flat) % WORD else flat

    words = flat.view(torch.int64)
    whole = len(words) // PLACES * PLACES
    if not whole:
        return words
    sums = words[:whole].view(-1, PLACES).sum(dim=0)
    return torch.cat([sums, words[whole:]])
