"""Makes one folder of results: runs its parts where nothing is stored yet, then puts them in place.

A run that was killed goes on with the part in which it stopped. What is stored is touched last,
when everything that replaces it lies beside it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbench.models.grammars import held_out_captions
from tools.results import made
from tools.results.made import Made
from tools.results.recipe import Part, Recipe

ROOT = Path(__file__).parents[2]
RESUMED = frozenset({"budget", "distill", "run", "sensitivity"})
"""Commands that continue what they have begun; the others start again."""
DONE = ".done.json"
HELD_OUT = 256  # captions, of which a recipe takes the first
NEW = ".new"  # holds what is about to be stored
LEFT = frozenset({"student", "checkpoint.pt"})
"""What no part's folder is stored with."""

Run = Callable[[list[str], Path], int]


@dataclass(frozen=True)
class Builder:
    """Builds folders of results.

    Args:
        results: the folder of them all.
        work: where commands run, in a folder for every name and its inputs.
        run: runs a command in a folder and returns its exit status.
    """

    results: Path
    work: Path
    run: Run

    def build(
        self, recipe: Recipe, inputs: dict[str, Any], *, untimed: bool = False
    ) -> Made | None:
        """Run what is missing of a recipe, and store it.

        Args:
            recipe: of a folder.
            inputs: what decides its outcome.
            untimed: leave out the parts that measure times.

        Returns:
            What was stored; None where parts were left out, which is stored with them later.

        Raises:
            ValueError: a command failed, or made nothing.
            OSError: there is no room, or no permission; what was stored before is still there.
        """
        work = self.work / recipe.name / made.digest(inputs)[:12]
        work.mkdir(parents=True, exist_ok=True)
        self._lay_out(recipe, work)

        seconds = _done(work)
        for part in recipe.parts:
            if part.out not in seconds and not (untimed and part.timed):
                seconds[part.out] = self._made(recipe, part, work)
                (work / DONE).write_text(json.dumps(seconds))
        if any(part.out not in seconds for part in recipe.parts):
            return None

        stored = [part for part in recipe.parts if not part.scratch]
        self._store(recipe, [kept for part in stored for kept in _kept(work, part)])
        folder = self.results / recipe.name
        record = Made(inputs, made.files(folder), seconds)
        record.write(folder)
        return record

    def _lay_out(self, recipe: Recipe, work: Path) -> None:
        """Put what the commands read where they run."""
        for name, source in recipe.uses.items():
            shutil.copyfile(self.results / source, work / name)
        if recipe.captions is not None:
            captions = held_out_captions(HELD_OUT, recipe.model)[: recipe.captions]
            text = "".join(f"{caption}\n" for caption in captions)
            (work / "captions.txt").write_text(text, "utf-8")

    def _made(self, recipe: Recipe, part: Part, work: Path) -> float:
        """Run one part; the seconds that it took, since it was last resumed."""
        root = self.results.parent
        commands = part.words({"here": str(self.results / recipe.name), "root": str(root)})
        begun = (work / part.place).exists()
        if begun and commands[0][1] in RESUMED:
            commands[0].append("--resume")
        elif begun:
            shutil.rmtree(work / part.place)

        started = time.perf_counter()
        for words in commands:
            status = self.run(words, work)
            if status:
                raise ValueError(
                    f"{recipe.name}: part '{part.out}' failed with status {status}: "
                    f"{shlex.join(words)}; what is done is in {work}"
                )
        if not (work / part.place).exists():
            raise ValueError(f"{recipe.name}: part '{part.out}' made no folder")
        return round(time.perf_counter() - started, 1)

    def _store(self, recipe: Recipe, files: list[tuple[Path, str]]) -> None:
        """Put made files into the folder of results, in place of those that it has."""
        folder = self.results / recipe.name
        new = folder / NEW
        shutil.rmtree(new, ignore_errors=True)
        try:
            for file, name in files:
                target = new / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            raise

        for name in made.files(folder):
            (folder / name).unlink()
        for path in sorted(new.rglob("*")):
            target = folder / path.relative_to(new)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                path.replace(target)
        shutil.rmtree(new)
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def is_cut_off(folder: Path) -> bool:
    """Whether storing was cut off, so that files are of two makings."""
    return (folder / NEW).exists()


def run_command(words: list[str], folder: Path) -> int:
    """Run a command of a recipe with this Python, in a process of its own; its exit status."""
    program, *rest = words
    module = ["-m", "sdbench.cli"] if program == "sdbench" else []
    # A recipe may run the project's own modules, too.
    found = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, *module, *rest]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": found}, check=False
    ).returncode


def _done(work: Path) -> dict[str, float]:
    """Seconds of the parts that are finished."""
    path = work / DONE
    found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _kept(work: Path, part: Part) -> Iterator[tuple[Path, str]]:
    """The files of a part that are stored, each with its place in the folder of results."""
    folder = work / part.place
    left = {*LEFT, *(() if part.images else ("images",))}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        hidden = any(name.startswith(".") for name in inner.parts)
        if path.is_file() and not hidden and not left & {*inner.parts}:
            yield path, (Path(part.out) / inner).as_posix()
