"""Safety checkers of pipelines: networks that replace an image by a placeholder.

A placeholder says nothing of a variant, and two of them are equal.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from sdbench.models.pipeline import Pipeline

FLAGS = ("nsfw_content_detected", "nsfw_detected")
"""How outputs of pipelines name the images that were replaced."""


@contextmanager
def safety_checker(pipe: Pipeline, *, on: bool) -> Iterator[None]:
    """Run a pipeline with its safety checker, or without it where it can run without it.

    A guard of another kind (that of Cosmos, whose licence asks for it) stays on.

    Args:
        pipe: is as before afterwards.
        on: leave the checker in.
    """
    # Assigning would also change what the pipeline says of itself, for good.
    own = vars(pipe)
    checker = own.get("safety_checker")
    if on or not _replaces_images(checker):
        yield
        return
    own["safety_checker"] = None
    try:
        yield
    finally:
        own["safety_checker"] = checker


def flags_of(output: Any) -> tuple[bool, ...]:
    """For each image of an output whether it is a placeholder; empty without a checker."""
    flags = next((getattr(output, name) for name in FLAGS if getattr(output, name, None)), ())
    return tuple(map(bool, flags))


def _replaces_images(checker: Any) -> bool:
    """Whether it is one of those that get images with what CLIP sees in them."""
    if not isinstance(checker, nn.Module):
        return False
    return {"images", "clip_input"} <= inspect.signature(type(checker).forward).parameters.keys()
