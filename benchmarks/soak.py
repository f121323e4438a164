"""Whether a long study takes more and more memory (`python -m benchmarks.soak`)."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from sdbench.models.registry import load
from sdbench.records.store import StudyFolder
from sdbench.study.runner import run
from sdbench.study.study import Study
from sdbench.variants.hooks import replaced

VARIANTS = ("cfg", "last:50%", "adaptive:0.9", "lora")
SETTLED = 200  # units after which caches and pools are filled
LIMIT = 0.05  # growth from there on


def soak(repeats: int, out: Path) -> list[int]:
    """Resident bytes of this process after every unit of a study, and at last after reading it.

    The study of mini-sd has a warm-up and `repeats` measured calls of each of `VARIANTS`, and goes
    through `run` like any other. A short one goes before it, so that the libraries that judge and
    read images are loaded when the count begins.
    """
    study = Study.protocol(
        "mini-sd",
        variants=VARIANTS,
        prompts=["a red ring"],
        num_steps=2,
        repeats=repeats,
        metrics=["ssim"],
    )

    pipe = load(study.model)
    run(replace(study, repeats=1), out / "first", pipe=pipe)

    taken: list[int] = []
    add = StudyFolder.add

    def added(folder: StudyFolder, unit: str, **frames: pd.DataFrame) -> None:
        add(folder, unit, **frames)
        taken.append(resident_bytes())

    with replaced(StudyFolder, "add", added):
        results = run(study, out / "study", pipe=pipe)
    assert len(results.runs) == len(taken)
    return [*taken, resident_bytes()]


def resident_bytes() -> int:
    """Memory of this process that is in RAM now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(units: Annotated[int, typer.Option(help="pipeline calls, more than 200")] = 2_000) -> None:
    """Print the memory after 200 calls, after the last and at the end.

    The exit code is 1 where it grew by over 5 %.
    """
    with tempfile.TemporaryDirectory() as folder:
        taken = soak(units // len(VARIANTS) - 1, Path(folder))

    settled = taken[SETTLED - 1]
    last, end = taken[-2:]
    growth = max(last, end) / settled - 1
    typer.echo(
        f"RSS after {SETTLED} units {settled / 1e6:.0f} MB, "
        f"after {len(taken) - 1} units {last / 1e6:.0f} MB, "
        f"read back {end / 1e6:.0f} MB: {growth:+.1%}"
    )
    if growth > LIMIT:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
