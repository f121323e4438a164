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
from sdbench.models.pipeline import Pipeline

BLOCKS = 64  # that a tensor's words are summed by: what moves to another one is seen
WORD = 8  # bytes

_SCHEDULER_STATE = ("betas", "alphas_cumprod", "shift")


def identity(pipe: Pipeline, *, full: bool = False) -> dict[str, str]:
    """The pipeline's class, and for each component its class with a digest.

    Args:
        pipe: as its calls will find it: a LoRA that is loaded or fused counts.
        full: take SHA-256 of the weights, at about 0.3 GB a second on a CPU. The sums that are
            taken otherwise see every bit at 6 GB a second, but could be matched on purpose.

    Returns:
        By the component's name; `pipeline` is the class with its own settings.
    """
    settings = {name: value for name, value in _config(pipe).items() if not _is_component(value)}
    found = {"pipeline": _named(pipe, settings)}
    for name, component in sorted(pipe.components.items()):
        if component is not None:
            found[name] = _named(component, _content(component, full=full))
    return found


def _named(component: Any, content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=repr)
    kind = type(bare_module(component)).__name__
    return f"{kind} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _content(component: Any, *, full: bool) -> Any:
    """What decides what a component computes."""
    if isinstance(component, nn.Module):
        tiling = getattr(component, "use_tiling", False)
        return [_config(component), tiling, _adapters(component), _weights(component, full=full)]
    if hasattr(component, "set_timesteps"):
        return [_config(component), [_plain(component, name) for name in _SCHEDULER_STATE]]
    if hasattr(component, "get_vocab"):
        vocabulary = sorted(component.get_vocab().items())
        return [vocabulary, component.special_tokens_map, component.model_max_length]
    return _config(component)


def _config(component: Any) -> dict[str, Any]:
    """The settings of a component, without those that say where it comes from."""
    config = getattr(component, "config", component)
    if hasattr(config, "to_dict"):  # of transformers
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return {}
    origin = {"transformers_version", "torch_dtype", "dtype"}
    return {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and name not in origin
    }


def _is_component(value: Any) -> bool:
    """Whether a setting names a class and its library, as a pipeline's components do."""
    return isinstance(value, list | tuple)


def _plain(component: Any, name: str) -> Any:
    """An attribute that may be missing, as JSON."""
    value = getattr(component, name, None)
    return value.tolist() if isinstance(value, Tensor) else value


def _adapters(module: nn.Module) -> list[Any]:
    """Which LoRAs are on, and how strongly: no weight says so."""
    layers = [part for part in module.modules() if hasattr(part, "active_adapters")]
    scaled = [part for part in layers if isinstance(getattr(part, "scaling", None), dict)]
    return [[part.active_adapters, part.scaling] for part in scaled]


def _weights(module: nn.Module, *, full: bool) -> list[Any]:
    """Name, form and digest of every tensor of a module."""
    named = [(name, part) for key, value in _state(module) for name, part in _parts(key, value)]
    forms = [[name, str(part.dtype), list(part.shape)] for name, part in named]
    here = [part for _, part in named if not part.is_meta]
    return [forms, _hashes(here) if full else _read(list(map(_sums, here)))]


def _hashes(tensors: list[Shaped[Tensor, "*shape"]]) -> list[str]:
    contents = (_bytes(tensor).cpu().numpy().tobytes() for tensor in tensors)
    return [hashlib.sha256(content).hexdigest() for content in contents]


def _read(sums: list[Int64[Tensor, " blocks"]]) -> list[list[int]]:
    """The sums as numbers, with one transfer for each device: a thousand small ones would wait."""
    by_device: dict[torch.device, list[Int64[Tensor, " blocks"]]] = {}
    for tensor in sums:
        by_device.setdefault(tensor.device, []).append(tensor)
    return [row for part in by_device.values() for row in torch.stack(part).cpu().tolist()]


def _state(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The module's state by names that no wrapper changes."""
    for key, value in module.state_dict().items():
        yield bare_name(key), value


def _parts(name: str, value: Any) -> Iterator[tuple[str, Shaped[Tensor, "*shape"]]]:
    """The plain tensors of an entry: quantised ones hold several, packed ones are tuples."""
    if isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _parts(f"{name}.{index}", item)
    elif isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):
        for inner in value.__tensor_flatten__()[0]:
            yield from _parts(f"{name}.{inner}", getattr(value, inner))
    elif isinstance(value, Tensor) and value.is_quantized:
        yield name, value.dequantize()  # with its scale
    elif isinstance(value, Tensor):
        yield name, value.detach()


def _bytes(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, " bytes"]:
    """The bytes of a tensor in the order of its elements, however it lies in memory."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _sums(tensor: Shaped[Tensor, "*shape"]) -> Int64[Tensor, " blocks"]:
    """Sums of a tensor's words by blocks; a change of any bit changes one of them."""
    flat = _bytes(tensor)
    whole = len(flat) // (WORD * BLOCKS) * (WORD * BLOCKS)
    sums = flat[:whole].view(torch.int64).view(BLOCKS, -1).sum(dim=1)

    # What is left has at most one word for each block.
    rest = nn.functional.pad(flat[whole:], (0, WORD * BLOCKS - (len(flat) - whole)))
    return sums + rest.view(torch.int64)
