"""The nested arguments and outputs of a denoiser as rows: find, halve and double them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch
from diffusers.utils import BaseOutput
from jaxtyping import Int64, Shaped
from torch import Tensor

UNBATCHED = frozenset({"image_rotary_emb", "img_ids", "txt_ids"})
"""Arguments that have no batch dimension, whatever their first dimension happens to be."""


def tensors(tree: Any) -> Iterator[Shaped[Tensor, "*shape"]]:
    """The tensors in nested arguments or outputs, in order."""
    if isinstance(tree, Tensor):
        yield tree
        return
    children: Iterable[Any] = ()
    if isinstance(tree, dict):
        children = tree.values()
    elif isinstance(tree, list | tuple):
        children = tree
    for child in children:
        yield from tensors(child)


def first_tensor(tree: Any) -> Shaped[Tensor, "rows ..."]:
    """The first tensor with a batch dimension in nested arguments or outputs."""
    for tensor in tensors(tree):
        if tensor.ndim > 0:
            return tensor
    raise LookupError("no tensor with a batch dimension")


def map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, BaseOutput):
        return type(tree)(**{key: map_tensors(value, change) for key, value in tree.items()})
    if isinstance(tree, dict):
        return {
            key: value if key in UNBATCHED else map_tensors(value, change)
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(value, change) for value in tree)
    return tree


def halves(tree: Any, rows: int) -> tuple[Any, Any]:
    """Nested arguments with the first and with the second half of every tensor of rows."""

    def half(part: slice) -> Any:
        return map_tensors(
            tree, lambda tensor: tensor[part] if tensor.ndim > 0 and len(tensor) == rows else tensor
        )

    return half(slice(rows // 2)), half(slice(rows // 2, None))


def select(tree: Any, rows: int, index: list[int]) -> Any:
    """Nested arguments with some rows of every tensor of rows, in the given order."""
    chosen = tuple(index)

    def pick(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        if tensor.ndim == 0 or len(tensor) != rows:
            return tensor
        return tensor.index_select(0, row_index(chosen, tensor.device))

    return map_tensors(tree, pick)


@lru_cache(maxsize=64)
def row_index(rows: tuple[int, ...], device: torch.device) -> Int64[Tensor, " chosen"]:
    """Rows as an index on a device, made once: making it again would wait for the device."""
    return torch.tensor(rows, dtype=torch.long, device=device)


def joined(first: Any, second: Any) -> Any:
    """Nested outputs of two halves as one."""
    following = tensors(second)
    return map_tensors(first, lambda tensor: torch.cat([tensor, next(following)]))


def doubled(tree: Any) -> Any:
    """Nested outputs with every tensor twice, as if the unconditional half had said the same."""
    return map_tensors(tree, lambda tensor: torch.cat([tensor, tensor]))
