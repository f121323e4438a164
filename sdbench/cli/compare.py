"""`sdbench compare`: a run against an earlier run of the same study."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdbench.cli.console import command, console
from sdbench.cli.options import Absolute, Accept, Json, Markdown, Threshold
from sdbench.cli.values import share

if TYPE_CHECKING:
    import pandas as pd

    from sdbench.records.store import Results

_Baseline = Annotated[Path, typer.Argument(help="folder of the study that is known to be right")]
_Current = Annotated[Path, typer.Argument(help="folder of the same study, run again")]


@command
def compare(
    baseline: _Baseline,
    current: _Current,
    threshold: Threshold = "3%",
    absolute: Absolute = False,
    accept: Accept = None,
    markdown: Markdown = None,
    json_file: Json = None,
) -> None:
    """Compare two runs of a study, and fail where the later one is worse.

    The exit code is 1 where a figure is worse, moved or missing, and 2 if the runs do not compare.
    """
    judge(
        baseline,
        current,
        threshold,
        absolute=absolute,
        accept=accept,
        markdown=markdown,
        json_file=json_file,
    )


def judge(
    baseline: Path,
    current: Path,
    threshold: str,
    *,
    absolute: bool,
    accept: str | None,
    markdown: Path | None,
    json_file: Path | None,
) -> None:
    """Print and write how a run compares with its baseline; a reason to accept it ends well.

    Raises:
        ValueError: the runs do not compare.
        typer.Exit: code 1 where a figure is bad, unless the run was accepted.
    """
    from sdbench.analysis.regression import BAD
    from sdbench.records.baselines import accept as make_baseline
    from sdbench.report.tables import comparison_markdown

    before, after, table = _compared(baseline, current, threshold, absolute, accept)
    _print_comparison(before, after, table)
    if markdown is not None:
        markdown.write_text(comparison_markdown(table), encoding="utf-8")
    if json_file is not None:
        json_file.write_text(table.to_json(orient="records", indent=1), encoding="utf-8")

    if accept is not None:
        make_baseline(baseline, after, table, accept, at=datetime.now(UTC))
        console.print(f"{baseline} is now this run.")
    elif table["verdict"].isin(BAD).any():
        raise typer.Exit(1)


def _compared(
    baseline: Path, current: Path, threshold: str, absolute: bool, accept: str | None
) -> tuple[Results, Results, pd.DataFrame]:
    """The earlier run, the later run and the table of their figures."""
    from sdbench.analysis.regression import COMPARED, Limits, NotComparable
    from sdbench.analysis.regression import compare as compared
    from sdbench.records.store import read

    limits = Limits(threshold=share("--threshold", threshold))
    # What becomes a baseline keeps all of its columns.
    columns = COMPARED if accept is None else None
    after = read(current, columns=columns)
    is_first = accept is not None and not baseline.exists()
    before = after if is_first else read(baseline, columns=columns)

    try:
        return before, after, compared(before, after, limits, absolute=absolute)
    except NotComparable:
        if accept is None:
            raise
        # Another study takes the baseline's place.
        return after, after, compared(after, after, limits)


def _print_comparison(before: Results, after: Results, table: pd.DataFrame) -> None:
    """The table, and what limits its verdicts."""
    from sdbench.analysis.regression import differing_environment
    from sdbench.report.tables import comparison_text

    console.print(comparison_text(table))
    same = int((table["verdict"] == "same").sum())
    console.print(f"{same} of {len(table)} figures are the same.")

    if keys := ", ".join(differing_environment(before, after)):
        console.print(f"Another machine or other versions ({keys}): absolute times do not compare.")
    if (table["verdict"] == "undecided").any():
        typer.echo("warning: too few repeats to decide every time", err=True)
    if (table["unstable"] != "").any():
        typer.echo("warning: a run was disturbed; the table says by what", err=True)
