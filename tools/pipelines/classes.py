"""The pipelines of the installed diffusers: read from the library, so that none is forgotten."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, ModularPipeline

ROOT = Path(diffusers.__file__).parent
LEFT_OUT = re.compile("Onnx|Flax")
"""Of other frameworks: they hold no modules of torch."""


def exported(root: Any = diffusers) -> dict[str, type | str]:
    """Every pipeline that diffusers exports, by name, or why its class cannot be had.

    Args:
        root: a module with lazy names, as diffusers is.
    """
    found: dict[str, type | str] = {}
    for name in sorted(dir(root)):
        if "Pipeline" not in name or LEFT_OUT.search(name):
            continue
        kind = _kind(root, name)
        if isinstance(kind, str) or _is_pipeline(kind, name):
            found[name] = kind
    return found


def family(kind: type) -> str:
    """The folder of a class, below those of all pipelines."""
    path = kind.__module__.removeprefix("diffusers.").removeprefix("pipelines.")
    return path.rpartition(".")[0].replace(".", "/") or path


def _kind(root: Any, name: str) -> Any:
    try:
        kind = getattr(root, name)
    except (ImportError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    # A class that needs another package is exported as one that only says so.
    return _behind(name) if getattr(kind, "_backends", None) else kind


def _behind(name: str) -> Any:
    """The class that a stand-in stands for, if it can be imported without what it needs."""
    for file in sorted(ROOT.rglob("*.py")):
        if f"\nclass {name}(" in file.read_text("utf-8") and not file.name.startswith("dummy"):
            path = ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
            try:
                return getattr(importlib.import_module(path), name)
            except (ImportError, RuntimeError, NameError) as error:
                return f"{type(error).__name__}: {error}"
    return None


def _is_pipeline(kind: Any, name: str) -> bool:
    """Whether a class makes something: neither a base nor another name of one."""
    if not isinstance(kind, type) or kind.__name__ != name:
        return False
    is_base = kind in (DiffusionPipeline, ModularPipeline)
    return issubclass(kind, (DiffusionPipeline, ModularPipeline)) and not is_base
