"""A network's own weights, by its own names, whatever wraps it, renames them or joins them.

`torch.compile` and processes in parallel put a module around the network, peft one around its
layers; projections that are fused stand next to those that they are made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_processor import Attention
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from sdbench.models.pipeline import Pipeline

WRAPPERS = frozenset({"DataParallel", "DistributedDataParallel", "OptimizedModule"})
"""Classes that a network may seem to be of."""
# Names of the modules around a network or its layers.
_AROUND = frozenset(
    {"_orig_mod", "base_layer", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
)
# By a projection that is fused: one of those that it is made of, which stay.
_FUSED = {
    "to_qkv": "to_k",
    "to_kv": "to_k",
    "to_added_qkv": "add_k_proj",
    "to_added_kv": "add_k_proj",
}


def bare_module(module: Any) -> Any:
    """A network without the modules around it."""
    while True:
        if isinstance(module, DataParallel | DistributedDataParallel):
            module = module.module
        elif hasattr(module, "_orig_mod"):
            module = module._orig_mod
        else:
            return module


def bare_name(name: str) -> str:
    """The name of a weight without the modules around the network."""
    kept = [part for part in name.removeprefix("module.").split(".") if part not in _AROUND]
    return ".".join(kept)


def bare_weights(module: nn.Module) -> dict[str, Shaped[Tensor, "*shape"]]:
    """The weights of a network by name, in order; low-rank layers and copies are left out.

    Raises:
        ValueError: weights that are not there now.
    """
    bare: nn.Module = bare_module(module)
    _require_present(bare)
    copies = _copies(bare)
    return {
        bare_name(name): weight
        for name, weight in bare.named_parameters()
        if not name.startswith(copies)
        and not any(part.startswith("lora_") for part in name.split("."))
    }


def copied_weights(module: nn.Module) -> dict[str, Shaped[Tensor, "*shape"]]:
    """The weights of a bare network that are only others joined, by name."""
    copies = _copies(module)
    return {name: part for name, part in module.named_parameters() if name.startswith(copies)}


@contextmanager
def uncovered(pipe: Pipeline) -> Iterator[None]:
    """While it holds, a pipeline has its networks without the modules around them.

    What diffusers does for a pipeline passes over a network that is no model of its own.
    """
    covered = {
        name: part for name, part in pipe.components.items() if bare_module(part) is not part
    }
    vars(pipe).update({name: bare_module(part) for name, part in covered.items()})
    try:
        yield
    finally:
        vars(pipe).update(covered)


def require_own_weights(module: nn.Module) -> None:
    """Refuse a network some of whose weights a student would not reach, without a word.

    Raises:
        ValueError: what to undo.
    """
    bare: nn.Module = bare_module(module)
    kind = type(bare).__name__
    around = [name for name, _ in bare.named_modules() if _AROUND & set(name.split("."))]
    if around:
        part = around[0].rpartition(".")[0]
        raise ValueError(
            f"the {kind} has another module around its {part}, which hides a student's layers: "
            "remove it, or compile the part in place with `.compile()`"
        )
    if any(_is_fused(part) for part in bare.modules()):
        raise ValueError(
            f"the {kind} has fused projections, which a student cannot change: call "
            "`unfuse_qkv_projections()` first"
        )
    _require_present(bare)


def _require_present(module: nn.Module) -> None:
    if any(weight.is_meta for weight in module.parameters()):
        raise ValueError(
            f"the weights of the {type(module).__name__} are loaded layer by layer, where a "
            "student cannot change them: undo `enable_sequential_cpu_offload()`, and use "
            "`enable_model_cpu_offload()` instead"
        )


def _copies(module: nn.Module) -> tuple[str, ...]:
    """What the names of weights begin with that are only others joined."""
    return tuple(
        f"{name}."
        for name, _ in module.named_modules()
        if _made_of(name) and hasattr(module.get_submodule(name.rpartition(".")[0]), _made_of(name))
    )


def _made_of(name: str) -> str:
    return _FUSED.get(name.rpartition(".")[2], "")


def _is_fused(part: nn.Module) -> bool:
    """Whether an attention layer computes with fused projections."""
    if not any(hasattr(part, fused) and hasattr(part, one) for fused, one in _FUSED.items()):
        return False
    # Of these the processor decides: the flag and the projections stay when it is put back.
    if isinstance(part, Attention):
        return type(part.processor).__name__.startswith("Fused")
    return bool(getattr(part, "fused_projections", False))
