"""Hold every pipeline of diffusers against the oracle, each in its own process; resumable.

What a class gave is kept in a file, under a hash of all that it depends on: a run that was killed
goes on where it was, and after a change only what the change concerns runs again.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from multiprocessing.connection import wait
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import diffusers
import torch

from tools.pipelines import recipes
from tools.pipelines.classes import family
from tools.pipelines.judge import judged
from tools.pipelines.outcomes import NOT_BUILT, ORDER, UNCLEAR, WITHOUT, WORKS
from tools.pipelines.small import RECIPES, WITHOUT_HALVES, Small

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".pipelines"
LIMIT_S = 600.0
"""For one class."""
OWN = ("record", "halves", "oracle", "compare", "judge", "small", "outcomes")

Row = dict[str, Any]


def load_recipes() -> dict[str, str]:
    """Register the recipes of all modules; the error of each that cannot be imported."""
    broken = {}
    for module in iter_modules(recipes.__path__):
        try:
            importlib.import_module(f"{recipes.__name__}.{module.name}")
        except Exception as error:  # noqa: BLE001 one that fails must not hide the others
            broken[module.name] = f"{type(error).__name__}: {error}"
    return broken


def results(
    kinds: Mapping[str, type | str], *, jobs: int, again: bool, folder: Path = FOLDER
) -> Iterator[Row]:
    """One row per class, in the order in which they are known.

    Args:
        kinds: classes by name, or why one cannot be had.
        jobs: processes at a time.
        again: whether classes run again whose results are there.
        folder: where results are kept.
    """
    folder.mkdir(exist_ok=True)
    keys = {name: key(name) for name in kinds if name in RECIPES}  # of the code that is imported
    waiting: dict[str, type] = {}
    for name, kind in kinds.items():
        known = _settled(name, kind) or (None if again else _kept(folder, name, keys[name]))
        if known:
            yield known
        elif isinstance(kind, type):
            waiting[name] = kind
    yield from _examined(waiting, keys, jobs, folder)


def _settled(name: str, kind: type | str) -> Row | None:
    """The row of a class that does not run."""
    where = family(kind) if isinstance(kind, type) else ""
    if name in WITHOUT_HALVES:
        return _row(name, where, WITHOUT, WITHOUT_HALVES[name])
    if isinstance(kind, str):
        return _row(name, where, NOT_BUILT, kind)
    return None if name in RECIPES else _row(name, where, NOT_BUILT, "no recipe")


def _row(name: str, where: str, outcome: str, reason: str) -> Row:
    short = (reason.strip().splitlines() or [""])[0]
    return {"name": name, "family": where, "outcome": outcome, "reason": short, "batches": []}


def _kept(folder: Path, name: str, of: str) -> Row | None:
    path = folder / f"{name}.json"
    row = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return row if row.get("key") == of else None


def key(name: str) -> str:
    """A hash of all that the row of a class depends on."""
    files = sorted((ROOT / "sdbench" / "models").glob("*.py"))
    files += sorted((ROOT / "sdbench" / "variants").rglob("*.py"))
    files += [Path(__file__).with_name(f"{own}.py") for own in OWN]
    files += _files_of(sys.modules[RECIPES[name].__module__])

    digest = hashlib.sha256(f"{diffusers.__version__} {torch.__version__}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _files_of(module: ModuleType) -> list[Path]:
    """The files of a recipe's module and of the parts that it takes."""
    found: dict[str, ModuleType] = {}
    new = [module]
    while new:
        current = new.pop()
        found[current.__name__] = current
        names = {str(getattr(part, "__module__", "")) for part in vars(current).values()}
        names |= {part.__name__ for part in vars(current).values() if isinstance(part, ModuleType)}
        ours = {n for n in names if n.startswith("tools.pipelines.") and n not in found}
        new += [sys.modules[name] for name in ours]
    return sorted(Path(str(part.__file__)) for part in found.values())


def _examined(
    waiting: Mapping[str, type], keys: Mapping[str, str], jobs: int, folder: Path
) -> Iterator[Row]:
    """The rows of classes that run, as they come."""
    context = multiprocessing.get_context("fork")  # everything is imported once
    queue = list(waiting.items())
    running: dict[Any, tuple[str, Any, float]] = {}
    while queue or running:
        while queue and len(running) < jobs:
            name, kind = queue.pop(0)
            (folder / f"{name}.json").unlink(missing_ok=True)
            process = context.Process(
                target=_child, args=(name, kind, keys[name], folder), daemon=True
            )
            process.start()
            running[process.sentinel] = (name, process, time.monotonic() + LIMIT_S)

        wait(list(running), timeout=1.0)
        for sentinel, (name, process, deadline) in list(running.items()):
            if process.is_alive() and time.monotonic() < deadline:
                continue
            process.kill()
            process.join()
            del running[sentinel]
            where = family(waiting[name])
            reason = f"its process ended ({process.exitcode}) within {LIMIT_S:g} s"
            yield _kept(folder, name, keys[name]) or _row(name, where, UNCLEAR, reason)


def _child(name: str, kind: type, of: str, folder: Path) -> None:
    """Examine a class and keep its row; what it prints goes to a file beside."""
    with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        torch.set_num_threads(1)
        start = time.monotonic()
        row = examined(name, kind)

    row |= {"key": of, "seconds": round(time.monotonic() - start, 1)}
    written = folder / f"{name}.{os.getpid()}"
    written.write_text(json.dumps(row, indent=1), encoding="utf-8")
    written.replace(folder / f"{name}.json")


def examined(name: str, kind: type) -> Row:
    """Build a small pipeline of a class and hold it against the oracle."""
    row = _row(name, family(kind), NOT_BUILT, "")
    try:
        small = RECIPES[name](kind)
        if hasattr(small.pipe, "set_progress_bar_config"):
            small.pipe.set_progress_bar_config(disable=True)
    except Exception as error:  # noqa: BLE001 the recipe's or the library's: the row says so
        return row | {"reason": _told(error)}

    batches = row["batches"] = [_batch(small, images) for images in small.batches]
    gravest = max(batches, key=lambda batch: ORDER.index(batch["outcome"]))
    orders = {batch["order"] for batch in batches}
    if gravest["outcome"] == WORKS and len(orders) > 1:
        unclear = {"outcome": UNCLEAR, "reason": "the order depends on the batch"}
        return row | unclear | {"batches": [batch | unclear for batch in batches]}
    return row | {"outcome": gravest["outcome"], "reason": gravest["reason"]}


def _batch(small: Small, images: int) -> Row:
    try:
        return judged(small, images)
    except Exception as error:  # noqa: BLE001 the pipeline fails by itself
        return {"batch": images, "outcome": NOT_BUILT, "reason": _told(error), "order": None}


def _told(error: Exception) -> str:
    traceback.print_exception(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
