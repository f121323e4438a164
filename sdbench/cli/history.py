"""`sdbench history`: how a baseline came to be what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdbench.cli.console import command
from sdbench.cli.options import written

_Baseline = Annotated[Path, typer.Argument(help="folder of the baseline")]
_Out = Annotated[Path | None, written(help="file for the picture; by default history.png")]


@command
def history(baseline: _Baseline, out: _Out = None) -> None:
    """List when and why a baseline was accepted, and plot its figures."""
    from sdbench.records.baselines import read_history
    from sdbench.report.figures import history_figure

    past = read_history(baseline)
    acceptances = past[["accepted", "reason", "forced"]].fillna("").drop_duplicates()
    for accepted, reason, forced in acceptances.itertuples(index=False):
        typer.echo(f"{accepted}  {reason}" + (f"  (--force: {forced})" if forced else ""))

    path = out or Path("history.png")
    history_figure(past).savefig(path)
    typer.echo(f"plotted in {path}")
