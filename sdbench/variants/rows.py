"""The nested arguments and outputs of a denoiser as rows: find, halve and double them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from diffusers.utils import BaseOutput
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

UNBATCHED = frozenset({"image_rotary_emb", "img_ids", "txt_ids"})
"""Arguments that have no batch dimension, whatever their first dimension happens to be."""

Reading = Literal["first", "grouped", "inner"]
"""Where a tensor's rows stand: as the first dimension; there, too, where several entries are of one
row, or else as the second dimension; as the second dimension wherever that fits."""
READINGS: tuple[Reading, ...] = ("first", "grouped", "inner")


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


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nesting with every tensor changed."""
    return _map(tree, change, lambda items: None)


def _map(
    tree: Any, change: Callable[[Tensor], Any], change_list: Callable[[Sequence[Any]], Any]
) -> Any:
    """The same nesting with tensors changed, and lists for which `change_list` has something."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, BaseOutput):
        return type(tree)(**{key: _map(value, change, change_list) for key, value in tree.items()})
    if isinstance(tree, dict):
        return {
            key: value if key in UNBATCHED else _map(value, change, change_list)
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        changed = change_list(tree)
        if changed is not None:
            return changed
        return type(tree)(_map(value, change, change_list) for value in tree)
    return tree


def frames_of(shape: Sequence[int]) -> int:
    """Frames of latents (rows, channels, frames, height, width); 1 for latents of other shapes."""
    return shape[2] if len(shape) == 5 else 1


def samples(tree: Any, latents: Sequence[int] = ()) -> Shaped[Tensor, "rows ..."] | list[Any]:
    """The samples among arguments or outputs: a tensor of rows, or a list of them.

    They are what looks like the latents. Where nothing does, they come first, but not as whole
    numbers where there is a list of others: those are tokens of a text.

    Args:
        tree: nested arguments or outputs.
        latents: shape of the latents of a half, where it is known.
    """
    found = list(_batches(tree))
    if not found:
        raise LookupError("no tensor with a batch dimension")
    if latents:
        for rows in found:
            if any(tuple(tensor.shape[1:]) == tuple(latents[1:]) for tensor in _entries(rows)):
                return rows
    first = found[0]
    if isinstance(first, Tensor) and not first.is_floating_point():
        return next((rows for rows in found if _is_list_of_floats(rows)), first)
    return first


def _batches(tree: Any) -> Iterator[Shaped[Tensor, "rows ..."] | list[Any]]:
    """Tensors, and lists that hold some, in order."""
    if isinstance(tree, Tensor):
        if tree.ndim > 0:
            yield tree
    elif isinstance(tree, list):
        if any(True for _ in tensors(tree)):
            yield tree
    elif isinstance(tree, dict | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _batches(value)


def _entries(rows: Shaped[Tensor, "rows ..."] | list[Any]) -> Iterator[Shaped[Tensor, "*shape"]]:
    """A tensor of rows, or the entries of a list as one row each."""
    if isinstance(rows, Tensor):
        yield rows
        return
    for tensor in tensors(rows):
        yield tensor
        yield tensor[None]


def _is_list_of_floats(rows: Shaped[Tensor, "rows ..."] | list[Any]) -> bool:
    return isinstance(rows, list) and all(own.is_floating_point() for own in tensors(rows))


def is_twice(rows: Shaped[Tensor, "rows ..."] | list[Any]) -> bool:
    """Whether the second half of some rows is the first one again."""
    middle = len(rows) // 2
    if middle == 0 or len(rows) % 2:
        return False
    pairs = zip(rows[:middle], rows[middle:], strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@dataclass(frozen=True)
class Layout:
    """How rows stand in the arguments of a call.

    Attributes:
        rows: how many there are.
        frames: of a row; what a denoiser gets for every frame stands row after row.
        listed: whether the samples are a list, so that other lists of that length are of rows, too.
        by_layer: shapes of arguments that may hold rows layer by layer, though they have as many
            layers as there are rows.
        reading: of tensors.
    """

    rows: int
    frames: int = 1
    listed: bool = False
    by_layer: frozenset[tuple[int, ...]] = frozenset()
    reading: Reading = "first"

    @classmethod
    def of(cls, arguments: Any, latents: Sequence[int] = ()) -> Layout:
        """The layout of a call's arguments.

        Args:
            arguments: args and kwargs.
            latents: shape of a half's latents, where it is known.
        """
        first = samples(arguments, latents)
        rows = len(first)
        by_layer = {
            tuple(value.shape)
            for value in arguments[1].values()
            if isinstance(value, Tensor) and value is not first and value.shape[:2] == (rows, rows)
        }
        shapes = frozenset(shape for shape in by_layer if len(shape) == 4)
        return cls(rows, frames_of(latents), isinstance(first, list), shapes)

    def halves(self, tree: Any) -> tuple[Any, Any]:
        """Nested arguments with the first and with the second half of everything of rows."""
        middle = self.rows // 2
        return self._cut(tree, slice(None, middle)), self._cut(tree, slice(middle, None))

    def select(self, tree: Any, index: list[int]) -> Any:
        """Nested arguments with some rows of everything of rows, in the given order."""
        return self._cut(tree, index)

    def is_certain(self, tree: Any) -> bool:
        """Whether every reading says the same of nested arguments."""
        return len({replace(self, reading=reading).kind(tree) for reading in READINGS}) == 1

    def kind(self, tree: Any) -> Hashable:
        """What is the same for all calls whose arguments have their rows at the same places."""
        places: list[Hashable] = []

        def note_tensor(tensor: Shaped[Tensor, "*shape"]) -> None:
            places.append((tensor.ndim, self._place(tensor)))

        def note_list(items: Sequence[Any]) -> Any:
            if not self._is_of_rows(items):
                return None
            places.append("list")
            return items

        _map(tree, note_tensor, note_list)
        return tuple(places)

    def _cut(self, tree: Any, chosen: slice | list[int]) -> Any:
        def cut_list(items: Sequence[Any]) -> Any:
            if not self._is_of_rows(items):
                return None
            if isinstance(chosen, slice):
                return items[chosen]
            return [items[row] for row in chosen]

        return _map(tree, lambda tensor: self._cut_tensor(tensor, chosen), cut_list)

    def _cut_tensor(
        self, tensor: Shaped[Tensor, "*shape"], chosen: slice | list[int]
    ) -> Shaped[Tensor, "*shape"]:
        place = self._place(tensor)
        if place is None:
            return tensor
        dim, group = place
        if isinstance(chosen, slice):
            start, stop, _ = chosen.indices(self.rows)
            return tensor.narrow(dim, group * start, group * (stop - start))
        entries = tuple(row * group + entry for row in chosen for entry in range(group))
        return tensor.index_select(dim, row_index(entries, tensor.device))

    def _place(self, tensor: Shaped[Tensor, "*shape"]) -> tuple[int, int] | None:
        """Which dimension of a tensor counts rows, and its entries per row."""
        shape = tuple(tensor.shape)
        if not shape:
            return None
        if shape[0] == self.rows:
            is_by_layer = shape in self.by_layer and self.reading == "inner"
            return (1, 1) if is_by_layer else (0, 1)
        if len(shape) > 1 and shape[0] == self.rows * self.frames:
            return 0, self.frames
        return self._place_further_in(shape) if self.reading != "first" else None

    def _place_further_in(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The same where the first dimension does not count rows."""
        if len(shape) > 2 and shape[1] == self.rows:
            return 1, 1
        is_grouped = len(shape) > 1 and shape[0] > 0 and shape[0] % self.rows == 0
        return (0, shape[0] // self.rows) if is_grouped else None

    def _is_of_rows(self, items: Sequence[Any]) -> bool:
        """Whether a list has an entry per row."""
        if not isinstance(items, list) or len(items) != self.rows:
            return False
        if self.listed:
            return True
        entries = [len(item) for item in items if isinstance(item, Tensor) and item.ndim > 1]
        return self.reading != "first" and len(entries) == self.rows and self.rows not in entries


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


def joined(first: Any, second: Any, *, listed: bool = False) -> Any:
    """Nested outputs of two halves as one; `listed` where their samples are in lists."""
    if listed and isinstance(first, list):
        return first + second
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if isinstance(first, BaseOutput):
        return type(first)(
            **{key: joined(value, second[key], listed=listed) for key, value in first.items()}
        )
    if isinstance(first, dict):
        return {key: joined(value, second[key], listed=listed) for key, value in first.items()}
    if isinstance(first, list | tuple):
        pairs = zip(first, second, strict=True)
        return type(first)(joined(one, other, listed=listed) for one, other in pairs)
    return first


def doubled(tree: Any, *, listed: bool = False) -> Any:
    """Nested outputs with all rows twice, as if the unconditional half had said the same."""
    return joined(tree, tree, listed=listed)


def stacked(rows: Shaped[Tensor, "rows ..."] | list[Any]) -> Shaped[Tensor, "rows ..."]:
    """Rows as one tensor, where they are a list.

    Raises:
        ValueError: they are of different shapes.
    """
    if isinstance(rows, Tensor):
        return rows
    if len({tuple(row.shape) for row in rows}) > 1:
        raise ValueError("the rows of the denoiser differ in shape: they must be of one size")
    return torch.stack(rows)
