"""How a pipeline is set to run: what moves its numbers and is no part of what it computes.

What it computes is told by `identity.py`, and how the process is set by `sdbench.records.settings`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from sdbench.models.bare_weights import bare_module
from sdbench.models.identity import in_words, plain_tensors
from sdbench.models.layout import layout
from sdbench.models.pipeline import Pipeline, networks_of
from sdbench.records.settings import attention_backend

PLAIN_WEIGHTS = ("Parameter", "Tensor", "Buffer")
PACKED = ("torch.ao.nn.", "torchao.", "optimum.quanto.", "bitsandbytes.")
"""Modules whose layers hold their weights in a form of their own."""
CACHES = ("cache", "pyramid_attention")
"""In the name of the module of diffusers that a cache's hooks are from."""
HOOKING = frozenset({"", "accelerate", "diffusers", "functools", "peft", "torch", "transformers"})
"""Packages whose `forward` is a part's own, or one of the hooks that are told by themselves."""
CACHING = frozenset({"DeepCache"})
"""Packages that replace a `forward` to cache what it returns."""
OF_HOOKS = (
    *("execution_device", "offload", "offload_buffers", "onload_device", "offload_device"),
    *("offload_type", "num_blocks_per_group", "non_blocking", "record_stream"),
    *("low_cpu_mem_usage", "stream"),
)
"""What a hook that moves weights may be told."""


def settings_of(pipe: Pipeline) -> dict[str, Any]:
    """What the environment record says of a pipeline: its layout, and `components` by name.

    Returns:
        As `layout` says, and for each network: `dtypes` (of its weights as they are stored),
        `devices`, and where there are any `attention` (processors, with the backend that each
        runs), `quantisation`, `casting` (layers whose weights are stored in one dtype and compute
        in another), `caches`, `hooks` (that move weights), `patched_by` (packages that replaced a
        `forward`) and `compiled`.
    """
    told = {name: _network(part) for name, part in sorted(networks_of(pipe).items())}
    return layout(pipe) | {"components": told}


def caches(network: nn.Module) -> list[str]:
    """Caches that are on in a network: diffusers' by their settings or hooks, or the package."""
    config = getattr(network, "_cache_config", None)
    named = [] if config is None else [type(config).__name__]
    # `enable_cache` keeps the settings; whoever calls `apply_first_block_cache` leaves hooks alone.
    hooks = sorted({type(hook).__name__ for hook in _hooks(network) if _is_cache(hook)})
    return [*(named or hooks), *(name for name in _patched_by(network) if name in CACHING)]


def _network(covered: nn.Module) -> dict[str, Any]:
    """The settings of a network, without those that are not there."""
    network: nn.Module = bare_module(covered)
    weights = list(_weights(network))
    always = {
        "dtypes": sorted({_word(weight.dtype) for weight in weights}),
        "devices": sorted({str(weight.device) for weight in weights}),
    }
    where_any = {
        "attention": _attention(network),
        "quantisation": _quantisation(network, weights),
        "casting": _counted(_casting(hook) for hook in _hooks(network) if _casts(hook)),
        "caches": caches(network),
        "hooks": _counted(_offload(hook) for hook in _hooks(network) if not _is_told(hook)),
        "patched_by": _patched_by(network),
        "compiled": _is_compiled(covered),
    }
    return always | {name: value for name, value in where_any.items() if value}


def _weights(network: nn.Module) -> Iterator[Shaped[Tensor, "*shape"]]:
    """Parameters, and the buffers of one byte that quantised layers keep theirs in."""
    yield from network.parameters()
    for buffer in network.buffers():
        if buffer.element_size() == 1 and buffer.dtype != torch.bool:
            yield buffer


def _attention(network: nn.Module) -> list[str]:
    """How attention is computed: processors of diffusers, or the word of transformers."""
    found = set()
    for part in network.modules():
        processor = getattr(part, "processor", None)
        if processor is not None:
            found.add(_processor(processor))
    own = getattr(getattr(network, "config", None), "_attn_implementation", None)
    return sorted(found | ({str(own)} if isinstance(own, str) else set()))


def _processor(processor: Any) -> str:
    """A processor with its backend: its own, or else the one of the process."""
    name = type(processor).__name__
    if not hasattr(processor, "_attention_backend"):
        return name  # it calls torch's attention itself
    own = processor._attention_backend
    return f"{name} {attention_backend() if own is None else getattr(own, 'value', own)}"


def _quantisation(
    network: nn.Module, weights: list[Shaped[Tensor, "*shape"]]
) -> dict[str, Any] | None:
    """What was asked for, and the tensors and layers that hold the weights."""
    config = getattr(getattr(network, "config", None), "quantization_config", None)
    if config is None:
        config = getattr(getattr(network, "hf_quantizer", None), "quantization_config", None)
    layers = [part for part in network.modules() if type(part).__module__.startswith(PACKED)]
    told = {
        "config": config if config is None else json.loads(json.dumps(config, default=in_words)),
        "tensors": _counted(
            _packed(weight) for weight in weights if type(weight).__name__ not in PLAIN_WEIGHTS
        ),
        "layers": _counted(type(layer).__name__ for layer in layers),
    }
    return {name: value for name, value in told.items() if value} or None


def _packed(weight: Shaped[Tensor, "*shape"]) -> str:
    """The class of a weight, with the dtypes of the tensors in it."""
    if not hasattr(weight, "__tensor_flatten__"):
        return f"{type(weight).__name__} {_word(weight.dtype)}"
    inner = {_word(part.dtype) for _, part in plain_tensors("", weight)}
    return f"{type(weight).__name__} {' '.join(sorted(inner))}"


def _hooks(network: nn.Module) -> Iterator[Any]:
    """The hooks of diffusers and of accelerate in a network, not those that join others."""
    for part in network.modules():
        registry = getattr(part, "_diffusers_hook", None)
        yield from getattr(registry, "hooks", {}).values()
        own = getattr(part, "_hf_hook", None)
        if own is not None:
            yield from getattr(own, "hooks", (own,))


def _casts(hook: Any) -> bool:
    return hasattr(hook, "storage_dtype") and hasattr(hook, "compute_dtype")


def _casting(hook: Any) -> str:
    return f"{_word(hook.storage_dtype)} stored, {_word(hook.compute_dtype)} computed"


def _is_cache(hook: Any) -> bool:
    module = type(hook).__module__
    return module.startswith("diffusers.hooks.") and any(name in module for name in CACHES)


def _is_told(hook: Any) -> bool:
    """Whether another entry tells of a hook."""
    return _casts(hook) or _is_cache(hook)


def _offload(hook: Any) -> str:
    """A hook by its class, and what it was told."""
    own = vars(getattr(hook, "config", None) or hook)
    given = {name: own[name] for name in OF_HOOKS if own.get(name) not in (None, False)}
    # A stream is an object whose words say where it lies; that there is one is the setting.
    words = (f"{name}={'yes' if name == 'stream' else value}" for name, value in given.items())
    return " ".join([type(hook).__name__, *words])


def _patched_by(network: nn.Module) -> list[str]:
    """Packages that replaced the `forward` of a part, as accelerators do."""
    forwards = (vars(part).get("forward") for part in network.modules())
    packages = {
        str(getattr(forward, "__module__", "")).partition(".")[0]
        for forward in forwards
        if forward is not None
    }
    return sorted(packages - HOOKING)


def _is_compiled(network: nn.Module) -> bool:
    return any(
        hasattr(part, "_orig_mod") or part._compiled_call_impl is not None
        for part in network.modules()
    )


def _counted(texts: Iterable[str]) -> list[str]:
    """Texts with how often each is there."""
    return [f"{text} x {count}" for text, count in sorted(Counter(texts).items())]


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
