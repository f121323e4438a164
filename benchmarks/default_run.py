"""`sdbench run` of two checkouts in turn: `python -m benchmarks.default_run --against FOLDER`.

How long each takes until its table is there, and how wide the intervals of its savings are. With
`--busy 1` another process keeps a core busy meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from benchmarks.lockstep import others

SUMMARISED = """
import sys
import sdbench
sdbench.summarise(sys.argv[1]).to_pickle(sys.argv[2])
"""


def run_of(checkout: Path) -> tuple[float, pd.DataFrame, str]:
    """Seconds of a run, its summary by its own checkout, and what it printed."""
    out = Path(tempfile.mkdtemp())
    env = os.environ | {"PYTHONPATH": str(checkout), "COLUMNS": "140"}
    command = [sys.executable, "-m", "sdbench.cli", "run", "--out", str(out / "study")]
    started = time.perf_counter()
    ran = subprocess.run(command, cwd=out, env=env, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    made = [sys.executable, "-c", SUMMARISED, str(out / "study"), str(out / "summary.pkl")]
    subprocess.run(made, cwd=out, env=env, check=True)
    return seconds, pd.read_pickle(out / "summary.pkl").set_index("variant"), ran.stdout


def main(
    against: Annotated[Path, typer.Option(help="folder of the other checkout")],
    rounds: Annotated[int, typer.Option(help="runs of each")] = 1,
    busy: Annotated[int, typer.Option(help="other processes at work")] = 0,
) -> None:
    """Print seconds, their ratio, and half widths in points."""
    checkouts = {"before": against.resolve(), "now": Path(__file__).resolve().parents[1]}
    seconds: dict[str, list[float]] = {name: [] for name in checkouts}
    for turn in range(rounds):
        for name in checkouts if turn % 2 else reversed(checkouts):
            with others(busy):
                taken, summary, printed = run_of(checkouts[name])
            seconds[name].append(taken)
            half = 50 * (summary["saving_hi"] - summary["saving_lo"])
            shown = pd.DataFrame({"saving": 100 * summary["saving"], "half": half}).round(2)
            typer.echo(f"{name}: {taken:.0f} s\n{shown.to_string()}")
            typer.echo("\n".join(printed.splitlines()[-80:]) if name == "now" else "")
    ratio = sum(seconds["now"]) / sum(seconds["before"])
    typer.echo(f"time of a run now over before: {ratio:.2f}")


if __name__ == "__main__":
    typer.run(main)
