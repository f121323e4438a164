"""Rebuild `results/` from its recipes: `python -m tools.results [FOLDER ...]`.

A folder is made again where what decides it has changed: the model's weights, its recipe and
studies, the version of sdbench, or a folder that it needs. A run that was killed goes on. `--check`
makes nothing and fails where a folder is not up to date. `--untimed` runs what measures no times,
so that other work may run beside it: what it makes is stored by a later run, which measures those.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.results import build, made
from tools.results.made import Made
from tools.results.recipe import Recipe, in_order, names

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
WORK = ROOT / "runs" / "results"


@dataclass(frozen=True)
class Planned:
    """A folder that is to be made, why, and the seconds that it took before, if ever."""

    recipe: Recipe
    why: list[str]
    seconds: float | None


def plan(results: Path, chosen: list[str], *, overwrite: bool = False) -> list[Planned]:
    """What has to be made, in order.

    Args:
        results: the folder of them all.
        chosen: names of folders; all when empty.
        overwrite: also folders that somebody edited.

    Raises:
        ValueError: a recipe is missing or wrong, or a folder was edited.
    """
    planned: dict[str, Planned] = {}
    for recipe in in_order(results, chosen or names(results)):
        folder = results / recipe.name
        before = Made.read(folder)
        edited = made.edits(folder, before) if before and not build.is_cut_off(folder) else []
        if edited and not overwrite:
            raise ValueError(
                f"results/{recipe.name} was edited since it was made ({edited[0]}): undo that, "
                "or --overwrite makes it again"
            )

        again = [name for name in recipe.needs if name in planned]
        why = [f"{name} is made again" for name in again] or _changes(results, recipe, before)
        why += edited + (["storing it was cut off"] if build.is_cut_off(folder) else [])
        if why:
            seconds = sum(before.seconds.values()) if before else None
            planned[recipe.name] = Planned(recipe, why, seconds)
    return list(planned.values())


def _changes(results: Path, recipe: Recipe, before: Made | None) -> list[str]:
    return made.changes(before, made.inputs(results, recipe))


def main(arguments: list[str] | None = None) -> int:
    """Make what is not up to date."""
    asked = _parser().parse_args(arguments)
    try:
        planned = plan(RESULTS, asked.names, overwrite=asked.overwrite)
        _say(_estimate(planned))
        if asked.check or asked.dry_run:
            return int(asked.check and bool(planned))

        builder = build.Builder(RESULTS, WORK, build.run_command)
        for place, one in enumerate(planned, start=1):
            inputs = made.inputs(RESULTS, one.recipe)
            record = builder.build(one.recipe, inputs, untimed=asked.untimed)
            took = f"{sum(record.seconds.values()) / 60:.0f} min" if record else "times are missing"
            _say(f"{place} of {len(planned)}: results/{one.recipe.name}, {took}")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _estimate(planned: list[Planned]) -> str:
    """A line for each folder and one for all."""
    if not planned:
        return "everything is up to date"
    lines = [
        f"results/{one.recipe.name}: {'; '.join(one.why)} ({_minutes(one.seconds)})"
        for one in planned
    ]
    known = [one.seconds for one in planned if one.seconds is not None]
    more = " and what was never timed" if len(known) < len(planned) else ""
    return "\n".join([*lines, f"{len(planned)} to make: {_minutes(sum(known))}{more}"])


def _minutes(seconds: float | None) -> str:
    return "never timed" if seconds is None else f"{seconds / 60:.0f} min, as last time"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.results", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="FOLDER", help="below results/; all by default")
    parser.add_argument("--check", action="store_true", help="fail where something is to be made")
    parser.add_argument("--dry-run", action="store_true", help="only say what is to be made")
    parser.add_argument("--untimed", action="store_true", help="leave out what measures times")
    parser.add_argument("--overwrite", action="store_true", help="also what somebody edited")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
