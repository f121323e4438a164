"""What `recipe.toml` in a folder of results says: which commands make its files, from what.

A recipe names the folders that it needs, and its parts in order:

    needs = ["mini-sd/plan"]              # folders whose files it reads
    uses = { "plan.json" = "mini-sd/plan/plan-10.json" }       # copied to where the commands run
    captions = 64                         # so many held-out captions are there as captions.txt
    student = true                        # the student that ships with the model runs in it
    model = "sd15"                        # whose results they are; mini-sd by default

    [[part]]
    out = "quality"                       # below the folder; "." is the folder itself
    command = "sdbench run {here}/quality.toml --prompts-file captions.txt"

    [[part]]
    each = [1, 2, 4]                      # a part for every one
    out = "students/rank-{each}"
    command = "sdbench distill --rank {each} --w 5"
    scratch = true                        # needed by later parts and not stored
    timed = true                          # it measures times, so nothing else should run

`command` may be a list, of commands that write the same folder one after another. They run in a
folder of their own. `{here}` is where the recipe stands, `{root}` the project; `--out` is added
unless a command says `{out}`. Students and checkpoints are not stored, images only where a part
says so (`images = true`).
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

FILE = "recipe.toml"
PROGRAMS = ("sdbench", "python")


@dataclass(frozen=True)
class Part:
    """Commands and the folder that they write.

    Args:
        out: below the folder of results; `.` is that folder.
        commands: words of each, with `{here}`, `{root}` and perhaps `{out}` in them.
        scratch: for later parts only; it is not stored.
        images: they are stored, too.
        timed: it measures times, so that nothing should run beside it.
    """

    out: str
    commands: tuple[tuple[str, ...], ...]
    scratch: bool = False
    images: bool = False
    timed: bool = False

    @property
    def place(self) -> str:
        """Where it is written while it is made, below the folder in which the commands run."""
        return "self" if self.out == "." else self.out

    @property
    def reads(self) -> list[str]:
        """What the commands read below `{here}` or `{root}`."""
        words = [word for command in self.commands for word in command]
        return [word for word in words if word.startswith(("{here}/", "{root}/"))]

    def words(self, places: dict[str, str]) -> list[list[str]]:
        """The commands as they run, `--out` included."""
        places = places | {"out": self.place}
        return [
            [_filled(word, places) for word in (*command, *_out_of(command))]
            for command in self.commands
        ]


@dataclass(frozen=True)
class Recipe:
    """How a folder of results is made.

    Args:
        name: of the folder, below `results/`.
        needs: names of folders that must be made before.
        uses: file where the commands run => file below `results/`.
        captions: held-out ones of the model, laid out as `captions.txt`; None for no such file.
        student: whether the model's own student runs in it.
        model: whose results they are: an embedded one, or an architecture with random weights.
        parts: in order.
    """

    name: str
    needs: tuple[str, ...] = ()
    uses: dict[str, str] = field(default_factory=dict)
    captions: int | None = None
    student: bool = False
    model: str = "mini-sd"
    parts: tuple[Part, ...] = ()


def read(results: Path, name: str) -> Recipe:
    """The recipe of a folder.

    Raises:
        ValueError: it is missing, no TOML, or says something else than a recipe does.
    """
    path = results / name / FILE
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: nothing says how {name} is made") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None

    fields = {"needs": list, "uses": dict, "captions": int}
    fields |= {"student": bool, "model": str, "part": list}
    _require(content, fields, path)
    parts = tuple(part for entry in content.get("part", ()) for part in _parts(entry, path))
    if not parts:
        raise ValueError(f"{path} has no [[part]]")
    _require_files(results, path, parts)
    outs = [part.out for part in parts]
    if twice := sorted({out for out in outs if outs.count(out) > 1}):
        raise ValueError(f"{path}: two parts write '{twice[0]}'")
    return Recipe(
        name,
        tuple(content.get("needs", ())),
        dict(content.get("uses", {})),
        content.get("captions"),
        content.get("student", False),
        content.get("model", "mini-sd"),
        parts,
    )


def names(results: Path) -> list[str]:
    """The folders that have a recipe, in the order of their names."""
    found = sorted(results.rglob(FILE))
    return [path.parent.relative_to(results).as_posix() for path in found]


def in_order(results: Path, chosen: list[str]) -> list[Recipe]:
    """The recipes of folders in the order in which they are made.

    A recipe comes after those that it needs. What is needed and not chosen is left out.

    Raises:
        ValueError: a recipe cannot be read, needs a folder without one, or itself in the end.
    """
    known = {name: read(results, name) for name in {*chosen, *names(results)}}
    for recipe in known.values():
        if missing := sorted({*recipe.needs} - known.keys()):
            raise ValueError(f"{recipe.name} needs {missing[0]}, which has no {FILE}")
    graph = {name: sorted(recipe.needs) for name, recipe in sorted(known.items())}
    try:
        ordered = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise ValueError(f"recipes need each other: {' <- '.join(error.args[1])}") from None
    return [known[name] for name in ordered if name in chosen]


def _parts(entry: dict[str, Any], path: Path) -> Iterator[Part]:
    """The part of an entry, or one for each of several values."""
    truths = dict.fromkeys(("scratch", "images", "timed"), bool)
    fields = {"out": str, "command": (str, list), "each": list, **truths}
    _require(entry, fields, path)
    if not {"out", "command"} <= entry.keys():
        raise ValueError(f"{path}: a part needs `out` and `command`")

    texts = entry["command"] if isinstance(entry["command"], list) else [entry["command"]]
    commands = [tuple(shlex.split(text)) for text in texts]
    if not all(words and words[0] in PROGRAMS for words in commands):
        raise ValueError(f"{path}: a command begins with {' or '.join(PROGRAMS)}")
    for value in entry.get("each", ("",)):
        places = {"each": str(value)}
        out = _filled(entry["out"], places)
        if PurePosixPath(out).is_absolute() or ".." in PurePosixPath(out).parts:
            raise ValueError(f"{path}: '{out}' is not below the folder")
        filled = tuple(tuple(_filled(word, places) for word in words) for words in commands)
        yield Part(out, filled, **{name: entry.get(name, False) for name in truths})


def files_read(results: Path, name: str, parts: Iterable[Part]) -> list[Path]:
    """The files beside the recipe and in the project that the commands of parts read."""
    places = {"here": str(results / name), "root": str(results.parent)}
    return sorted({Path(_filled(word, places)) for part in parts for word in part.reads})


def _require_files(results: Path, path: Path, parts: Iterable[Part]) -> None:
    """Refuse a recipe whose commands read a study or captions that are not there."""
    name = path.parent.relative_to(results).as_posix()
    for file in files_read(results, name, parts):
        if not file.exists():
            raise ValueError(f"{file} is missing, which {path} reads")


def _out_of(command: tuple[str, ...]) -> tuple[str, ...]:
    return () if any("{out}" in word for word in command) else ("--out", "{out}")


def _filled(text: str, places: dict[str, str]) -> str:
    """A text with what stands in braces put in; other braces stay."""
    for name, value in places.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _require(content: dict[str, Any], fields: dict[str, Any], path: Path) -> None:
    for name, value in content.items():
        if name not in fields:
            raise ValueError(f"{path}: unknown '{name}'; there are: {', '.join(fields)}")
        # To Python true and false are numbers, too.
        is_right = isinstance(value, fields[name]) and isinstance(value, bool) <= (
            fields[name] is bool
        )
        if not is_right:
            raise ValueError(f"{path}: '{name}' cannot be {value!r}")
