"""Trains a student that predicts the guided result in one conditional pass.

`sdbench.distill(...)` calls `trainer.py`: the package bears the name of the verb, so the module
itself is made callable.
"""

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`sdbench.distill.trainer.distill`, imported when it is needed: it brings torch."""
        from sdbench.distill.trainer import distill

        return distill(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb
