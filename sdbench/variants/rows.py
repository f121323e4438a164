"""The nested arguments and outputs of a denoiser as rows: find, halve and double them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from diffusers.utils import BaseOutput
from jaxtyping import Float, Int64, Shaped
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


def frames_of(shape: Sequence[int]) -> int:
    """Frames of latents (rows, channels, frames, height, width); 1 for latents of other shapes."""
    return shape[2] if len(shape) == 5 else 1


def halves(tree: Any, rows: int, *, frames: int = 1) -> tuple[Any, Any]:
    """Nested arguments with the first and with the second half of every tensor of rows.

    Args:
        tree: of arguments.
        rows: of both halves.
        frames: of a row; what a denoiser gets for every frame stands row after row.
    """

    def half(second: bool) -> Any:
        def cut(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
            if not _is_of_rows(tensor, rows, frames):
                return tensor
            middle = len(tensor) // 2
            return tensor[middle:] if second else tensor[:middle]

        return map_tensors(tree, cut)

    return half(False), half(True)


def select(tree: Any, rows: int, index: list[int], *, frames: int = 1) -> Any:
    """Nested arguments with some rows of every tensor of rows, in the given order.

    Args:
        tree: of arguments.
        rows: that there are.
        index: of those that are wanted.
        frames: of a row, which all go with it.
    """
    chosen = tuple(index)
    by_frame = tuple(row * frames + frame for row in index for frame in range(frames))

    def pick(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        if not _is_of_rows(tensor, rows, frames):
            return tensor
        places = chosen if len(tensor) == rows else by_frame
        return tensor.index_select(0, row_index(places, tensor.device))

    return map_tensors(tree, pick)


def _is_of_rows(tensor: Shaped[Tensor, "*shape"], rows: int, frames: int) -> bool:
    """Whether the first dimension counts rows, or the frames of rows."""
    if tensor.ndim == 0:
        return False
    return len(tensor) == rows or (tensor.ndim > 1 and len(tensor) == rows * frames)


def as_rows(
    tensor: Float[Tensor, "first ..."], like: Float[Tensor, "rows ..."]
) -> Float[Tensor, "rows ..."]:
    """Latents in the layout of a denoiser's output, where their frames stand as rows of their own.

    So text-to-video pipelines give them to their schedulers. Others stay as they are.
    """
    rows, frames = like.shape[0], frames_of(like.shape)
    if like.ndim != 5 or tensor.ndim != 4 or len(tensor) != rows * frames:
        return tensor
    return tensor.unflatten(0, (rows, frames)).transpose(1, 2)


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
