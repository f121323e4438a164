"""How a small pipeline of each class is made and called; importing a module here registers its own.

A recipe says only what the classes' signatures do not: sizes that must fit each other, and the
arguments of a call.
"""

from importlib import import_module
from pkgutil import iter_modules


def load_all() -> None:
    """Register the recipes of all modules."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
