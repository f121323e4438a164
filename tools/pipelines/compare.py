"""How far two records of a call are from each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils import _pytree as pytree

from tools.pipelines.record import Record

PLAIN = (str, int, float, bool)


def values(record: Record) -> list[Any]:
    """What the schedulers returned, step by step, and what the pipeline did."""
    results = [result for step in record.taken for result in step.results]
    leaves = [_number(leaf) for leaf in pytree.tree_leaves(record.output)]
    return results + [leaf for leaf in leaves if isinstance(leaf, (torch.Tensor, *PLAIN))]


def _number(leaf: Any) -> Any:
    if isinstance(leaf, Image.Image):
        leaf = np.asarray(leaf)
    return torch.from_numpy(leaf.copy()) if isinstance(leaf, np.ndarray) else leaf


def is_finite(record: Record) -> bool:
    """Whether no value is NaN or infinite."""
    return all(v.isfinite().all() for v in values(record) if isinstance(v, torch.Tensor))


def is_same(first: Record, second: Record) -> bool:
    """Whether two records are equal bit by bit."""
    pairs = _pairs(first, second)
    return pairs is not None and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs
    )


def distance(first: Record, second: Record) -> float:
    """The largest difference, as a share of the largest value of its tensor.

    Infinite where anything but a rounded pixel differs that has no size.
    """
    pairs = _pairs(first, second)
    if pairs is None:
        return math.inf
    return max((_apart(a, b) for a, b in pairs), default=0.0)


def _pairs(first: Record, second: Record) -> list[tuple[Any, Any]] | None:
    """Value by value; None where there is another number of them, or of another form."""
    one, other = values(first), values(second)
    if len(one) != len(other):
        return None
    pairs = list(zip(one, other, strict=True))
    alike = all(
        type(a) is type(b) and getattr(a, "shape", 0) == getattr(b, "shape", 0) for a, b in pairs
    )
    return pairs if alike else None


def _apart(a: Any, b: Any) -> float:
    if not isinstance(a, torch.Tensor):
        return 0.0 if a == b else math.inf
    if a.numel() == 0:
        return 0.0
    if a.is_floating_point() or a.is_complex():
        return float((a - b).abs().max()) / max(float(b.abs().max()), 1e-30)
    levels = int((a.long() - b.long()).abs().max())
    return 0.0 if levels <= (a.dtype == torch.uint8) else math.inf
