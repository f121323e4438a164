"""Replace an attribute of an instance for a while, and take the replacement off again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn


@contextmanager
def call_replaced(
    module: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Wrap what calling a module runs.

    `Module.__call__` prefers this attribute. So the hook stays outside accelerate's wrapper of
    `forward` and outside a compiled graph.
    """
    with replaced(
        module, "_compiled_call_impl", wrap(module._compiled_call_impl or module._call_impl)
    ):
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute on an instance and take it off again, restoring only what is still ours."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)

    try:
        yield
    finally:
        if vars(owner).get(name, missing) is value:
            if before is missing:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


def bare_copy(scheduler: Any, memo: dict[int, Any]) -> Any:
    """A deep copy of a scheduler without the wrappers, which would act on the original."""
    bare = copy.copy(scheduler)
    for name in ("set_timesteps", "step", "__deepcopy__"):
        with suppress(KeyError):
            del vars(bare)[name]
    return copy.deepcopy(bare, memo)
