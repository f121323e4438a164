"""How a pipeline asks for its two predictions: learnt once, kept for all of its calls.

Most pipelines put the unconditional rows first, or call their denoiser for the conditional rows
first. Nothing says so. The half that answers to the prompt is the one that holds the embeddings
which `encode_prompt` returned. Where it holds none of them, a guided prediction shows the order
(`fitted_scale.py`).
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from sdbench.models.copied import owner_of
from sdbench.models.pipeline import Pipeline
from sdbench.variants.policy import HALVES, Half
from sdbench.variants.rows import Layout, Reading, tensors

Order = tuple[Half, Half]
"""The halves of a guided step as their rows or calls follow each other."""
COND_FIRST: Order = ("cond", "uncond")


@dataclass
class Form:
    """What is known of the guidance in a pipeline's loop.

    Attributes:
        orders: by whether both halves come in one call.
        shown: of these, the ones that a guided prediction has shown.
        third: why a third evaluation needs both halves; empty where it is of their latents, None
            until one was compared with them.
        place: of the latents among the tokens of a call that has more: "first", "last" or
            "elsewhere"; empty where no such call was seen.
        is_of_its_own: why its guidance is of another kind than by two predictions; empty where it
            is not, as far as is known.
        readings: how the rows of a call's arguments stand in them, by `Layout.kind`.
    """

    orders: dict[bool, Order] = field(default_factory=dict)
    shown: set[bool] = field(default_factory=set)
    third: str | None = None
    place: str = ""
    is_of_its_own: str = ""
    readings: dict[Hashable, Reading] = field(default_factory=dict)


_ENCODING = threading.RLock()
_FORMS: weakref.WeakKeyDictionary[Any, dict[int, Form]] = weakref.WeakKeyDictionary()


def form_of(pipe: Pipeline, loop: int) -> Form:
    """What is known of one of a pipeline's loops up to now; its copies share it.

    Args:
        pipe: a guided pipeline.
        loop: place of its scheduler among those of the pipeline.
    """
    return _FORMS.setdefault(owner_of(pipe), {}).setdefault(loop, Form())


def usual(*, in_one_call: bool) -> Order:
    """The order that is taken for granted until something tells it."""
    return HALVES if in_one_call else COND_FIRST


class Texts:
    """The embeddings that a pipeline's `encode_prompt` returned for the call in progress."""

    def __init__(self) -> None:
        """None yet."""
        self._returned: list[Shaped[Tensor, "*shape"]] = []

    def begin(self) -> None:
        """Forget those of the last call."""
        self._returned = []

    def encoding(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Keep what `encode_prompt` returns: of the prompt first, of the negative one later.

        A tokenizer keeps the padding of its last call, so threads that share one take turns.
        """
        # One that encodes a text at a time does not say which text that is.
        encodes_both = any("negative" in name for name in inspect.signature(original).parameters)

        @functools.wraps(original)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            with _ENCODING:
                returned = original(*args, **kwargs)
            if encodes_both:
                self._returned += [tensor for tensor in tensors(returned) if tensor.ndim > 1]
            return returned

        return encode_prompt

    def order(self, layout: Layout, arguments: Any, *, in_one_call: bool) -> Order | None:
        """Which half answers to the prompt; None where that is not told.

        Args:
            layout: of the rows of a call.
            arguments: args and kwargs of the call: that is for both halves, or the first of two.
            in_one_call: whether it is for both.
        """
        if not self._returned:
            return None
        if not in_one_call:
            is_prompt = any(self._is_prompt(tensor) for tensor in tensors(arguments))
            return COND_FIRST if is_prompt else None

        first, second = layout.halves(arguments)
        for one, other in zip(tensors(first), tensors(second), strict=True):
            is_prompt, is_second = self._is_prompt(one), self._is_prompt(other)
            if is_prompt != is_second:
                return COND_FIRST if is_prompt else HALVES
        return None

    def _is_prompt(self, tensor: Shaped[Tensor, "*shape"]) -> bool:
        """Whether a tensor is the first of its shape that was returned, and no later one."""
        alike = [own for own in self._returned if _shape(own) == _shape(tensor)]
        return (
            bool(alike)
            and _equal(alike[0], tensor)
            and not any(_equal(own, tensor) for own in alike[1:])
        )


def _shape(tensor: Shaped[Tensor, "*shape"]) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _equal(one: Shaped[Tensor, "*shape"], other: Shaped[Tensor, "*shape"]) -> bool:
    return torch.equal(one.to(other), other)
