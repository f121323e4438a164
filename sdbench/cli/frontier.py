"""`sdbench frontier`: variants by time, and which of them are worth their time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdbench.cli.console import command, console
from sdbench.cli.differing import print_differing
from sdbench.cli.options import Metric, Results, compared, written

_Timing = Annotated[Path | None, compared(help="folder of another study, to take the times from")]
_Out = Annotated[Path | None, written(help="folder for the picture; by default the study's")]


@command
def frontier(
    results: Results, metric: Metric = "lpips", timing: _Timing = None, out: _Out = None
) -> None:
    """Find the variants that no other variant beats in both time and quality."""
    from sdbench.analysis.frontier import frontier as ordered
    from sdbench.analysis.tables import SUMMARY
    from sdbench.instruments.quality import find_metric
    from sdbench.records.store import read
    from sdbench.report.figures import frontier_figure
    from sdbench.report.tables import FRONTIER_LEGEND, frontier_markdown

    kind, _ = find_metric(metric)
    judged = read(results, columns=SUMMARY)
    timed = None if timing is None else read(timing, columns=SUMMARY)
    better = bool(kind.higher_is_better)
    table = ordered(judged, kind.name, higher_is_better=better, timing=timed)
    typer.echo(frontier_markdown(table))
    typer.echo(f"\n{FRONTIER_LEGEND}")
    if timed is not None:
        print_differing(judged, timed)

    path = (out or results) / f"frontier-{kind.name}.png"
    frontier_figure(table, metric=kind.name).savefig(path)
    console.print(f"The picture is {path}", soft_wrap=True)
