"""The guidance scale of the formula `u + w (c - u)`, and the number that a pipeline takes for it.

Most pipelines take w. Some compute `c + s (c - u)`, whose s is w - 1. Nothing says so, but a guided
step shows it (`sdbench.variants.telling`).
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any

from sdbench.models.copied import owner_of

if TYPE_CHECKING:
    from sdbench.models.pipeline import Pipeline

NEAR = 0.02
"""How far, of w, a difference may be from the whole number that it stands for."""

_LESS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def learn_scale(pipe: Pipeline, *, own: float, formula: float) -> None:
    """Keep how far the number that a pipeline got is from the w which a guided step showed."""
    if not math.isfinite(formula):
        return
    less = round(formula - own)
    if less in (0, 1) and abs(formula - own - less) < NEAR * abs(formula):
        _LESS[owner_of(pipe)] = less


def own_scale(pipe: Pipeline, guidance_scale: float) -> float:
    """The number by which a pipeline is asked for a scale w; w itself while nothing is known."""
    return guidance_scale - _LESS.get(owner_of(pipe), 0)
