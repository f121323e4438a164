"""One method, one file: its text, its check, its behaviour, its paper and its entry in `METHODS`.

A new file of this folder is found by itself.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from sdbench.variants.variant import Method


def all_methods() -> Iterator[Method]:
    """The methods of every file of this folder, in the order of the files' names."""
    for module in pkgutil.iter_modules(__path__):
        yield from import_module(f"{__name__}.{module.name}").METHODS
