"""Commands that hold a run against an earlier one."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sdbench.cli.console import app, console, one_line_errors, quiet
from sdbench.cli.options import new_folder, share, variant_names
from sdbench.cli.running import run_study

_Threshold = Annotated[str, typer.Option(help="the smallest change of time that matters")]
_Absolute = Annotated[
    bool, typer.Option("--absolute", help="compare times themselves, too: on one machine only")
]
_Accept = Annotated[
    str | None, typer.Option(help="make the run the baseline, for this reason, whatever changed")
]
_Markdown = Annotated[Path | None, typer.Option(help="write the table for a pull request")]
_Json = Annotated[Path | None, typer.Option("--json", help="write every figure")]


@app.command()
def compare(
    baseline: Annotated[Path, typer.Argument(help="folder of the study that is known to be right")],
    current: Annotated[Path, typer.Argument(help="folder of the same study, run again")],
    threshold: _Threshold = "3%",
    absolute: _Absolute = False,
    accept: _Accept = None,
    markdown: _Markdown = None,
    json_file: _Json = None,
) -> None:
    """Compare two runs of a study: exit code 1 where a figure is worse, moved or missing, 2 if they do not compare."""
    with one_line_errors():
        bad = _compare(
            baseline,
            current,
            threshold,
            absolute=absolute,
            markdown=markdown,
            json_file=json_file,
            accept=accept,
        )
    if bad:
        raise typer.Exit(1)


@app.command()
def bench(
    study: Annotated[
        Path | None, typer.Argument(help="a study file (TOML); without one, mini-sd's benchmark")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="name, hub id or folder; see `sdbench models`")
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="with commas between them; see `sdbench variants`")
    ] = None,
    baselines: Annotated[
        Path, typer.Option(help="folder of the baselines, one for each study and model")
    ] = Path("results/baselines"),
    out: Annotated[
        Path | None, typer.Option(help="the run's folder; a new one under sdbench-results/")
    ] = None,
    threshold: _Threshold = "3%",
    absolute: _Absolute = False,
    accept: _Accept = None,
    markdown: _Markdown = None,
    json_file: _Json = None,
) -> None:
    """Run the regression benchmark and compare it with its baseline; exit codes are those of `compare`."""
    quiet()
    with one_line_errors():
        from sdbench.study.study import Study

        options = {"model": model, "variants": variant_names(variants)}
        given = {key: value for key, value in options.items() if value is not None}
        planned = (
            Study.from_toml(study, **given) if study else Study.protocol("mini-sd-bench", **given)
        )
        baseline = baselines / re.sub(r"[^\w.-]+", "-", f"{planned.name}-{planned.model}")
        if accept is None and not baseline.exists():
            raise ValueError(
                f"there is no baseline in {baseline}; make this run one: --accept REASON"
            )
        folder = out or new_folder(planned.name)
        run_study(planned, str(folder), mode="new")
        bad = _compare(
            baseline,
            folder,
            threshold,
            absolute=absolute,
            markdown=markdown,
            json_file=json_file,
            accept=accept,
        )
    if bad:
        raise typer.Exit(1)


def _compare(
    baseline: Path,
    current: Path,
    threshold: str,
    *,
    absolute: bool,
    accept: str | None,
    markdown: Path | None,
    json_file: Path | None,
) -> bool:
    """Print and write the comparison of two runs; whether it is bad and was not accepted."""
    from sdbench.analysis.regression import (
        BAD,
        COMPARED,
        Limits,
        NotComparable,
        compare,
        differing_environment,
    )
    from sdbench.records.baselines import accept as make_baseline
    from sdbench.records.store import read
    from sdbench.report.tables import comparison_markdown, comparison_text

    limits = Limits(threshold=share("--threshold", threshold))
    needed = COMPARED if accept is None else None
    found = read(current, columns=needed)
    first = accept is not None and not baseline.exists()
    known = found if first else read(baseline, columns=needed)
    try:
        table = compare(known, found, limits, absolute=absolute)
    except NotComparable:
        if accept is None:
            raise
        known, table = (
            found,
            compare(found, found, limits),
        )  # another study takes the baseline's place
    console.print(comparison_text(table))
    same = int((table["verdict"] == "same").sum())
    console.print(f"{same} of {len(table)} figures are the same.")
    if keys := differing_environment(known, found):
        console.print(
            f"Another machine or other versions ({', '.join(keys)}): absolute times do not compare."
        )
    if (table["verdict"] == "undecided").any():
        typer.echo("warning: too few repeats to decide every time", err=True)
    if (table["unstable"] != "").any():
        typer.echo("warning: a run was disturbed; the table says by what", err=True)
    if markdown is not None:
        markdown.write_text(comparison_markdown(table), encoding="utf-8")
    if json_file is not None:
        json_file.write_text(table.to_json(orient="records", indent=1), encoding="utf-8")
    if accept is not None:
        make_baseline(baseline, found, table, accept, at=datetime.now(UTC))
        console.print(f"{baseline} is now this run.")
    return accept is None and bool(table["verdict"].isin(BAD).any())


@app.command()
def history(
    baseline: Annotated[Path, typer.Argument(help="folder of a baseline")],
    out: Annotated[
        Path | None, typer.Option(help="where the picture goes; history.png by default")
    ] = None,
) -> None:
    """List when and why a baseline was accepted, and plot its figures."""
    with one_line_errors():
        from sdbench.records.baselines import read_history
        from sdbench.report.history import history_figure

        past = read_history(baseline)
        for accepted, reason in (
            past[["accepted", "reason"]].drop_duplicates().itertuples(index=False)
        ):
            typer.echo(f"{accepted}  {reason}")
        path = out or Path("history.png")
        history_figure(past).savefig(path)
        typer.echo(f"plotted in {path}")
