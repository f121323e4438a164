"""What a student learns from: rows of the denoiser's calls, with both predictions of the teacher.

The rows come from a source: the teacher's own trajectories (`trajectories.py`), or captioned images
(`noised_images.py`). Both record the calls of the pipeline itself, so whatever its denoiser takes
(pooled embeddings, sizes, packed latents) is there without code per family. Everything depends on
the seed and the step alone, so that a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sdbench.distill.loss import guided_prediction
from sdbench.variants.rows import UNBATCHED

Teaching = Callable[[], AbstractContextManager[Any]]
"""Makes a block in which the pipeline is the teacher's and nothing is recorded for gradients."""


@dataclass(frozen=True)
class Scales:
    """The guidance scales that a student learns: one (`lo` is `hi`), or all between two.

    Args:
        lo: the lowest.
        hi: the highest.
    """

    lo: float
    hi: float

    def trajectory(self, rng: np.random.Generator) -> float:
        """The scale of a trajectory of the teacher, above 1."""
        # `rng.random()` is never 1, so that `lo` itself is never drawn, which may be 1.
        return self.hi - (self.hi - self.lo) * float(rng.random())

    def rows(self, rng: np.random.Generator, count: int) -> Float[Tensor, " count"]:
        """The scale that each row is taught."""
        return torch.from_numpy(self.hi - (self.hi - self.lo) * rng.random(count)).float()


class Examples(NamedTuple):
    """Rows to learn from.

    Attributes:
        args: of the denoiser's call, conditional rows only.
        kwargs: of the same call.
        cond: the teacher's conditional prediction of every row.
        uncond: its unconditional one.
        sigma: noise-to-signal ratio of every row.
        scale: w of every row, on the CPU.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cond: Float[Tensor, "rows ..."]
    uncond: Float[Tensor, "rows ..."]
    sigma: Float[Tensor, " rows"]
    scale: Float[Tensor, " rows"]

    @property
    def target(self) -> Float[Tensor, "rows ..."]:
        """The guided prediction of every row."""
        return guided_prediction(self.cond, self.uncond, self.scale)


class Source(Protocol):
    """Gives the batch of every training step; the teacher runs under `teaching`."""

    def at(self, step: int, *, teaching: Teaching) -> Examples:
        """The batch of one step, which depends on nothing else."""
        ...


def picked_rows(
    batches: Sequence[Examples],
    picks: Sequence[tuple[int, int]],
    scale: Float[Tensor, " rows"],
) -> Examples:
    """Single rows of several batches as one batch.

    Args:
        batches: of the same number of rows.
        picks: (batch, row) of every row.
        scale: w that every row is taught.
    """
    calls = [(batches[batch].args, batches[batch].kwargs) for batch, _ in picks]
    args, kwargs = gathered(calls, [row for _, row in picks], rows=len(picks))

    cond = torch.stack([batches[batch].cond[row] for batch, row in picks])
    uncond = torch.stack([batches[batch].uncond[row] for batch, row in picks])
    sigma = torch.stack([batches[batch].sigma[row] for batch, row in picks])
    return Examples(args, kwargs, cond, uncond, sigma, scale)


def gathered(trees: Sequence[Any], picks: Sequence[int], *, rows: int) -> Any:
    """One row of each of several alike nested arguments, joined.

    Args:
        trees: nested arguments with the same structure.
        picks: the row of each.
        rows: how many rows a batched tensor has.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return _gathered_tensors(trees, picks, rows=rows)

    # Some arguments have no rows, whatever their first dimension is: they stay as they are.
    if isinstance(first, dict):
        joined = dict(first)
        for key in first.keys() - UNBATCHED:
            joined[key] = gathered([tree[key] for tree in trees], picks, rows=rows)
        return joined

    if isinstance(first, list | tuple):
        members = zip(*trees, strict=True)
        return type(first)(gathered(member, picks, rows=rows) for member in members)
    return first


def _gathered_tensors(
    tensors: Sequence[Shaped[Tensor, "*shape"]], picks: Sequence[int], *, rows: int
) -> Shaped[Tensor, "*joined"]:
    """One row of each tensor; a scalar (a timestep) becomes one per row."""
    first = tensors[0]
    if first.ndim == 0:
        return torch.stack(list(tensors))
    if len(first) == rows:
        return torch.stack([tensor[row] for tensor, row in zip(tensors, picks, strict=True)])

    # Without rows it is the same in all calls, such as a table of positions.
    return first
