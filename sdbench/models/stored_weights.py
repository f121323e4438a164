"""How many bytes weights take in memory, whatever form they are stored in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from sdbench.models.pipeline import Pipeline


def weights_bytes(pipe: Pipeline) -> int:
    """Bytes of all weights of a pipeline's modules.

    Raises:
        ValueError: as `stored_bytes` says.
    """
    return stored_bytes(part for part in pipe.components.values() if isinstance(part, nn.Module))


def stored_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of all parameters and buffers of modules, and of what quantised ones pack.

    `nbytes` of a quantised weight is that of its values before they were quantised (torchao
    0.18.0), so the tensors that it is made of are counted.

    Raises:
        ValueError: Where weights are on the meta device, so that their bytes are not in memory.
    """
    held: list[Shaped[Tensor, "*shape"]] = []
    for module in modules:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_meta:
                raise ValueError(
                    f"{type(module).__name__}.{name} is on the meta device: "
                    "its weights are not loaded"
                )
            held.append(tensor)
        held += _packed(module)

    # By address, so that storage which several tensors share counts once.
    storages = {}
    for tensor in stored_tensors(held):
        storage = tensor.untyped_storage()
        storages[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def stored_tensors(held: Iterable[Any]) -> Iterator[Shaped[Tensor, "*shape"]]:
    """The tensors that have memory of their own: a quantised one is made of several.

    Args:
        held: tensors, among other things.
    """
    for tensor in held:
        if is_traceable_wrapper_subclass(tensor):
            parts, _ = tensor.__tensor_flatten__()
            yield from stored_tensors(getattr(tensor, part) for part in parts)
        elif isinstance(tensor, Tensor):
            yield tensor


def _packed(module: nn.Module) -> Iterator[Shaped[Tensor, "*shape"]]:
    """The weights of torch's own quantised layers, which are neither parameters nor buffers."""
    for value in module.state_dict().values():
        if not isinstance(value, Tensor):
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
