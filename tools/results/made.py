"""`made.json` in a folder of results: from what it was made, and the digest of every file.

It tells whether a folder is up to date, and whether somebody edited it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from sdbench.models.emoji_sd.catalogue import CATALOGUE
from sdbench.models.grammars import GRAMMARS
from sdbench.models.identity import identity
from sdbench.models.registry import MODELS, load
from sdbench.records.store import SCHEMA_VERSION
from sdbench.study import protocols
from tools.results.recipe import FILE, Recipe, files_read

MADE = "made.json"
PROTOCOLS = Path(protocols.__path__[0])
CAPTIONS = {"mini-sd": PROTOCOLS / "mini-sd-held-out.txt", "emoji-sd": CATALOGUE}
"""What the held-out captions of a model are read from."""
AUTHORED = (".toml", ".md", ".txt")
"""Files of a folder that people write; all others are made."""


@dataclass(frozen=True)
class Made:
    """What stands in `made.json`.

    Args:
        inputs: what decided the outcome, by kind.
        files: SHA-256 of every made file, by its place in the folder.
        seconds: that each part took, by its `out`.
    """

    inputs: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Made | None:
        """None where the folder was never made by its recipe.

        Raises:
            ValueError: the file is there and says something else.
        """
        path = folder / MADE
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None

    def write(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        unfinished = folder / f".{MADE}"
        unfinished.write_text(json.dumps(vars(self), indent=1) + "\n", "utf-8")
        unfinished.replace(folder / MADE)


def inputs(results: Path, recipe: Recipe) -> dict[str, Any]:
    """What decides a folder's outcome.

    Returns:
        `model`: what an embedded model is; `student`: the digest of the one that ships with it,
        where it runs; `texts`: of the recipe, of what its commands read and of the held-out
        captions;
        `code`: the version of sdbench and of the tables; `needs`: of the files of the folders that
        are needed.

    Raises:
        ValueError: a folder that is needed is not made.
    """
    folder = results / recipe.name
    found: dict[str, Any] = {
        "model": model(recipe.model) if recipe.model in GRAMMARS else recipe.model,
        "texts": _digest_of(
            [
                folder / FILE,
                CAPTIONS.get(recipe.model, CAPTIONS["mini-sd"]),
                *_protocols(recipe),
                *files_read(results, recipe.name, recipe.parts),
            ]
        ),
        "code": {"sdbench": version("sdbench"), "schema": SCHEMA_VERSION},
        "needs": {},
    }
    if recipe.student:
        adapter = MODELS[recipe.model].adapter
        assert adapter is not None
        found["student"] = _digest_of(sorted(Path(adapter).glob("*.safetensors")))
    for name in recipe.needs:
        before = Made.read(results / name)
        if before is None:
            raise ValueError(f"{recipe.name} needs {name}, which is not made")
        found["needs"][name] = digest(before.files)
    return found


@cache
def model(name: str) -> dict[str, str]:
    """What an embedded model is, as its studies record it."""
    return identity(load(name, device="cpu"))


def changes(before: Made | None, now: dict[str, Any]) -> list[str]:
    """Why a folder has to be made, in words; nothing where it is up to date."""
    if before is None:
        return ["never made"]
    kinds = [kind for kind in now if before.inputs.get(kind) != now[kind]]
    words = {"texts": FILE.removesuffix(".toml"), "code": "code", "needs": "a folder it needs"}
    return [f"another {words.get(kind, kind)}" for kind in kinds]


def edits(folder: Path, made: Made) -> list[str]:
    """What is no longer as it was made: changed, missing and further files, in words."""
    now = files(folder)
    missing = [f"{name} is missing" for name in made.files.keys() - now.keys()]
    further = [f"{name} was added" for name in now.keys() - made.files.keys()]
    both = now.keys() & made.files.keys()
    changed = [f"{name} was changed" for name in both if now[name] != made.files[name]]
    return sorted(missing + further + changed)


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder that people do not write."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: _digest_of([path]) for name, path in named.items() if _is_made(name)}


def _is_made(name: str) -> bool:
    """Whether a file comes from a recipe; what is hidden belongs to nobody."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and name != MADE and not name.endswith(AUTHORED)


def digest(content: Any) -> str:
    """The SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_of(paths: list[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()


def _protocols(recipe: Recipe) -> list[Path]:
    """The studies that ship with sdbench and that its commands name, or mini-sd's own."""
    words = [word for part in recipe.parts for command in part.commands for word in command]
    named = [after for word, after in pairwise(words) if word == "--protocol"]
    return [PROTOCOLS / f"{name}.toml" for name in sorted({"mini-sd", *named})]
