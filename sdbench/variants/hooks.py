"""Replace or wrap an attribute of an instance for a while, and take that off again in any order.

Several owners may do so at once on one instance, from several threads: two pipelines may share a
denoiser. Whatever is taken off leaves the others in place, and the last one restores what was
there. What somebody else has put on top meanwhile is not touched.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import nn

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
"""From what a call ran before to what it runs for a while."""
MODULE_CALL = "_compiled_call_impl"
"""What `Module.__call__` prefers to its own way.

A hook here stays outside accelerate's wrapper of `forward` and outside a compiled graph.
"""
_ABSENT = object()
_LOCK = threading.RLock()


@dataclass(eq=False)
class _Replacement:
    """An attribute that is set for a while.

    `before` is what the instance itself held, which changes where that is taken off first; it is
    `_ABSENT` where the class's attribute counts, which `default` gives.
    """

    owner: Any
    name: str
    before: Any
    default: Any
    value: Any = None
    is_placed: bool = False


_PLACED: list[_Replacement] = []


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute on an instance and take it off again, restoring only what is still ours."""
    with _LOCK:
        before = vars(owner).get(name, _ABSENT)
        replacement = _Replacement(owner, name, before, None, value)
        _place(replacement)
    try:
        yield
    finally:
        _take_off(replacement)


@contextmanager
def wrapped(owner: Any, name: str, wrap: Wrap) -> Iterator[None]:
    """Wrap a method of an instance.

    What is below is looked up at every call, so it may be taken off first. Once this is taken off,
    whoever still holds the wrapper runs what is below.
    """
    with _LOCK:
        before = vars(owner).get(name, _ABSENT)
        default = getattr(owner, name) if before is _ABSENT else _default(owner, name)
        replacement = _Replacement(owner, name, before, default)
        # Pipelines inspect the signature of what they call, so it is handed on.
        _wrap(replacement, wrap, functools.update_wrapper)
        _place(replacement)
    try:
        yield
    finally:
        _take_off(replacement)


@contextmanager
def call_replaced(module: nn.Module, wrap: Wrap) -> Iterator[None]:
    """Wrap what calling a module runs."""
    with _LOCK:
        # None is how torch says that nothing is compiled.
        before = vars(module).get(MODULE_CALL, _ABSENT)
        replacement = _Replacement(module, MODULE_CALL, before, module._call_impl)
        _wrap(replacement, wrap, lambda wrapper, _: wrapper)
        _place(replacement)
    try:
        yield
    finally:
        _take_off(replacement)


def below_ours(owner: Any, name: str) -> Any:
    """What an instance would hold without our wrappers; None for nothing of its own."""
    value = vars(owner).get(name, _ABSENT)
    for replacement in reversed(_PLACED):
        is_here = replacement.owner is owner and replacement.name == name
        if is_here and replacement.value is value:
            value = replacement.before
    return None if value is _ABSENT else value


def _default(owner: Any, name: str) -> Any:
    """What the instance would have without any attribute of its own."""
    for replacement in _PLACED:
        if replacement.owner is owner and replacement.name == name and replacement.default:
            return replacement.default
    method: Any = getattr(type(owner), name, None)
    return method.__get__(owner) if hasattr(method, "__get__") else method


def _wrap(replacement: _Replacement, wrap: Wrap, named_as: Callable[..., Any]) -> None:
    """Give a replacement its value: what `wrap` makes of whatever is below."""

    def lower() -> Any:
        before = replacement.before
        return replacement.default if before is _ABSENT or before is None else before

    def below(*args: Any, **kwargs: Any) -> Any:
        return lower()(*args, **kwargs)

    upper = wrap(named_as(below, lower()))

    def layer(*args: Any, **kwargs: Any) -> Any:
        return (upper if replacement.is_placed else below)(*args, **kwargs)

    replacement.value = named_as(layer, upper)


def _place(replacement: _Replacement) -> None:
    _PLACED.append(replacement)
    replacement.is_placed = True
    setattr(replacement.owner, replacement.name, replacement.value)


def _take_off(replacement: _Replacement) -> None:
    """Take a replacement off, from the top or from below others of ours."""
    owner, name = replacement.owner, replacement.name
    with _LOCK:
        _PLACED.remove(replacement)
        replacement.is_placed = False
        for other in _PLACED:
            if (other.owner is owner and other.name == name) and other.before is replacement.value:
                other.before = replacement.before

        if vars(owner).get(name, _ABSENT) is replacement.value:
            if replacement.before is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, replacement.before)


def bare_copy(scheduler: Any, memo: dict[int, Any]) -> Any:
    """A deep copy of a scheduler without the wrappers, which would act on the original."""
    bare = copy.copy(scheduler)
    for name in ("set_timesteps", "step", "__deepcopy__"):
        with suppress(KeyError):
            del vars(bare)[name]
    return copy.deepcopy(bare, memo)
