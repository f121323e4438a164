"""`sdbench compare`: a run against an earlier run of the same study."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdbench.cli.console import command, console
from sdbench.cli.differing import print_differing
from sdbench.cli.options import Absolute, Accept, Force, Json, Markdown, Threshold, Undecided
from sdbench.cli.values import share

if TYPE_CHECKING:
    import pandas as pd

    from sdbench.records.store import Results

_Baseline = Annotated[Path, typer.Argument(help="folder of the earlier run, known to be right")]
_Current = Annotated[Path, typer.Argument(help="folder of the later run of the same study")]


UNDECIDED = 3
"""Exit code where nothing is worse, as far as the times were decided."""


@dataclass(frozen=True)
class Terms:
    """How runs are judged, and what becomes of the later one.

    Args:
        threshold: the smallest slowdown that matters, relative.
        passes: whether a time that is undecided may pass.
        absolute: whether times themselves are compared, too.
        accept: the reason for which the run becomes the baseline, if it does.
        force: whether it does though its times spread.
    """

    threshold: float
    passes: bool
    absolute: bool
    accept: str | None
    force: bool


def terms_of(
    threshold: str, undecided: str, *, absolute: bool, accept: str | None, force: bool
) -> Terms:
    """The terms that options give.

    Raises:
        ValueError: an option that does not fit.
    """
    if undecided not in ("fail", "pass"):
        raise ValueError(f"--undecided takes fail or pass, not '{undecided}'")
    if accept is not None and not accept.strip():
        raise ValueError("--accept needs a reason, not an empty text")
    if force and accept is None:
        raise ValueError("--force needs --accept REASON: it accepts a run whose times spread")
    smallest = share("--threshold", threshold)
    return Terms(smallest, undecided == "pass", absolute, accept, force)


@command
def compare(
    baseline: _Baseline,
    current: _Current,
    threshold: Threshold = "3%",
    undecided: Undecided = "fail",
    absolute: Absolute = False,
    accept: Accept = None,
    force: Force = False,
    markdown: Markdown = None,
    json_file: Json = None,
) -> None:
    """Compare two runs of a study, and fail where the later one is worse.

    Exit code 1: a figure is worse, has moved or is missing. Exit code 2: the runs cannot be
    compared, or the later one cannot be a baseline. Exit code 3: nothing is worse, but the repeats
    are too few to decide a time.
    """
    terms = terms_of(threshold, undecided, absolute=absolute, accept=accept, force=force)
    judge(baseline, current, terms, markdown=markdown, json_file=json_file)


def judge(
    baseline: Path,
    current: Path,
    terms: Terms,
    *,
    markdown: Path | None,
    json_file: Path | None,
) -> None:
    """Print and write how a run compares with its baseline; a reason to accept it ends well.

    Raises:
        ValueError: the runs do not compare, or the run is to be a baseline and its times spread.
        typer.Exit: code 1 where a figure is bad, else 3 where a time is undecided and must not be,
            unless the run was accepted.
    """
    from sdbench.analysis.regression import BAD
    from sdbench.report.tables import comparison_markdown

    before, after, table = _compared(baseline, current, terms)
    _print_comparison(before, after, table)
    if markdown is not None:
        markdown.write_text(comparison_markdown(table), encoding="utf-8")
    if json_file is not None:
        json_file.write_text(table.to_json(orient="records", indent=1), encoding="utf-8")

    if terms.accept is not None:
        _accept(baseline, current, after, table, terms)
    elif table["verdict"].isin(BAD).any():
        raise typer.Exit(1)
    elif (table["verdict"] == "undecided").any() and not terms.passes:
        raise typer.Exit(UNDECIDED)


def _accept(baseline: Path, current: Path, run: Results, table: pd.DataFrame, terms: Terms) -> None:
    """Make a run the baseline, unless its times spread and nobody insists."""
    from sdbench.analysis.stability import unstable
    from sdbench.records.baselines import accept

    against = _listed(unstable(run))
    if against and not terms.force:
        raise ValueError(
            f"{current} cannot be the baseline ({against}): run it again on an idle machine, "
            "or accept it with --force"
        )
    accept(baseline, run, table, str(terms.accept), at=datetime.now(UTC), forced=against)
    console.print(f"This run is now the baseline in {baseline}.")


def _listed(reasons: dict[str, str]) -> str:
    """What speaks against the variants of a run, in one line."""
    return "; ".join(f"{variant}: {reason}" for variant, reason in reasons.items())


def _compared(baseline: Path, current: Path, terms: Terms) -> tuple[Results, Results, pd.DataFrame]:
    """The earlier run, the later run and the table of their figures."""
    from sdbench.analysis.regression import COMPARED, Limits, NotComparable
    from sdbench.analysis.regression import compare as compared
    from sdbench.records.store import read

    limits = Limits(threshold=terms.threshold)
    # What becomes a baseline keeps all of its columns.
    columns = COMPARED if terms.accept is None else None
    after = read(current, columns=columns)
    is_first = terms.accept is not None and not baseline.exists()
    before = after if is_first else read(baseline, columns=columns)

    try:
        return before, after, compared(before, after, limits, absolute=terms.absolute)
    except NotComparable:
        if terms.accept is None:
            raise
        # Another study takes the baseline's place.
        return after, after, compared(after, after, limits)


def _print_comparison(before: Results, after: Results, table: pd.DataFrame) -> None:
    """The table, and what limits its verdicts."""
    from sdbench.analysis.stability import unstable
    from sdbench.analysis.timing import ABSOLUTE
    from sdbench.records.names import BASELINE
    from sdbench.report.tables import comparison_text, undecided_text

    console.print(comparison_text(table))
    same = int((table["verdict"] == "same").sum())
    console.print(f"{same} of {len(table)} figures are the same.")

    print_differing(before, after)
    if reasons := _listed(unstable(before)):
        typer.echo(f"warning: the baseline is unstable ({reasons}): measure it again", err=True)
    if (table["unstable"] != "").any():
        typer.echo("warning: a run was disturbed; the table says by what", err=True)
    is_absolute = (table["figure"] == ABSOLUTE).any()
    if (table["verdict"] == "improvement").any() and not is_absolute:
        typer.echo(
            f"warning: a ratio falls if its variant got faster, or if {BASELINE} got slower; "
            "--absolute tells which, on one machine",
            err=True,
        )
    if told := undecided_text(table):
        typer.echo(told, err=True)
