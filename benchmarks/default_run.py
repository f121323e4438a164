"""`sdbench run` of two checkouts in turn: `python -m benchmarks.default_run --against FOLDER`.

How long each takes until its first table is there and until its end, and how wide the intervals of
its savings are. With `--busy 1` another process keeps a core busy meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import pandas as pd
import typer

from benchmarks.lockstep import others
from sdbench.records.names import BASELINE

SUMMARISED = """
import sys
import sdbench
sdbench.summarise(sys.argv[1]).to_parquet(sys.argv[2])
"""


class Run(NamedTuple):
    """Seconds until the first table and until the end, the summary, and what was printed."""

    table_s: float
    whole_s: float
    summary: pd.DataFrame
    printed: list[str]


def run_of(checkout: Path, num_steps: int) -> Run:
    """The default run of a checkout, at some number of steps, summarised by its own code."""
    out = Path(tempfile.mkdtemp())
    env = os.environ | {"PYTHONPATH": str(checkout), "COLUMNS": "140"}
    command = [sys.executable, "-u", "-m", "sdbench.cli", "run", "--out", str(out / "study")]
    command += ["--num-steps", str(num_steps)]
    started = time.perf_counter()
    printed: list[str] = []
    table_s = 0.0
    with subprocess.Popen(command, cwd=out, env=env, stdout=subprocess.PIPE, text=True) as ran:
        assert ran.stdout is not None
        for line in ran.stdout:
            printed.append(line.rstrip())
            # The first row of the table; while a call runs its name stands behind the counts.
            if not table_s and line.split()[:1] == [BASELINE]:
                table_s = time.perf_counter() - started
    whole_s = time.perf_counter() - started
    if ran.returncode:
        raise RuntimeError(f"the run of {checkout} failed: {printed[-1:]}")

    made = [sys.executable, "-c", SUMMARISED, str(out / "study"), str(out / "summary.parquet")]
    subprocess.run(made, cwd=out, env=env, check=True)
    summary = pd.read_parquet(out / "summary.parquet").set_index("variant")
    return Run(table_s, whole_s, summary, printed)


def main(
    against: Annotated[Path, typer.Option(help="folder of the other checkout")],
    steps: Annotated[int, typer.Option(help="of the baseline; fewer take less time")] = 50,
    rounds: Annotated[int, typer.Option(help="runs of each")] = 1,
    busy: Annotated[int, typer.Option(help="other processes at work")] = 0,
) -> None:
    """Print seconds, their ratio, and half widths in points."""
    checkouts = {"before": against.resolve(), "now": Path(__file__).resolve().parents[1]}
    seconds: dict[str, list[float]] = {name: [] for name in checkouts}
    for turn in range(rounds):
        for name in checkouts if turn % 2 else reversed(checkouts):
            with others(busy):
                run = run_of(checkouts[name], steps)
            seconds[name].append(run.table_s)
            half = 50 * (run.summary["saving_hi"] - run.summary["saving_lo"])
            shown = pd.DataFrame({"saving": 100 * run.summary["saving"], "half": half}).round(2)
            typer.echo("\n".join(run.printed))
            typer.echo(f"{name}: first table {run.table_s:.0f} s, whole {run.whole_s:.0f} s")
            typer.echo(shown.to_string())
    ratio = sum(seconds["now"]) / sum(seconds["before"])
    typer.echo(f"time until the first table, now over before: {ratio:.2f}")


if __name__ == "__main__":
    typer.run(main)
