"""What a recipe gives: a pipeline with tiny random weights, and the arguments of a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

STEPS = 4
"""Of a call."""
SCALE = 4.0
"""w of the formula `u + w (c - u)`, whatever number the pipeline takes for it."""


@dataclass(frozen=True)
class Small:
    """A pipeline of one class with tiny random weights.

    Attributes:
        pipe: it stops at latents where its class can, so it may lack a decoder.
        call: the arguments of a call that makes a number of images (or videos, or sounds), with
            guidance on. Each image has its own prompt, negative prompt (where the pipeline takes
            any) and seeded generator, so a call with the same number gives the same again.
        off: what to change in the arguments so that the pipeline runs without guidance.
        another: what to change so that the conditional half alone sees something else, such as
            another prompt. By it the oracle finds which half that is.
        batches: numbers of images that the class takes; some take one only.
    """

    pipe: Any
    call: Callable[[int], dict[str, Any]]
    off: Callable[[int], dict[str, Any]]
    another: Callable[[int], dict[str, Any]]
    batches: tuple[int, ...] = (1, 2)


Recipe = Callable[[type], Small]
RECIPES: dict[str, Recipe] = {}
"""By class of the pipeline."""
WITHOUT_HALVES: dict[str, str] = {}
"""Classes that do not guide by a conditional and an unconditional half, and why."""


def small(*names: str) -> Callable[[Recipe], Recipe]:
    """Register a recipe for classes of diffusers, which it gets as its argument."""

    def register(recipe: Recipe) -> Recipe:
        for name in names:
            assert name not in RECIPES, name
            RECIPES[name] = recipe
        return recipe

    return register


def generators(images: int) -> list[torch.Generator]:
    """One per image: what one draws does not depend on the others."""
    return [torch.Generator().manual_seed(seed) for seed in range(images)]


def rows(images: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Random numbers (images, ...), such as embeddings; each image's own."""
    draws = [
        torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + image))
        for image in range(images)
    ]
    return torch.stack(draws)
