"""Commands that read a finished study: its tables, its page, ranks, frontiers, distances."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdbench.cli.console import app, console, one_line_errors, quiet


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="folder of a study")],
    html: Annotated[
        Path | None, typer.Option(help="write a page with table, figures and images")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the table in Markdown")] = None,
    csv: Annotated[
        Path | None, typer.Option(help="write the summary as it is, nothing rounded")
    ] = None,
    latex: Annotated[Path | None, typer.Option(help="write the table in LaTeX (booktabs)")] = None,
) -> None:
    """Write a study's table and its page; without an option the table is printed."""
    with one_line_errors():
        from sdbench.analysis.tables import summarise
        from sdbench.report import tables

        summary = summarise(results)
        written = {
            markdown: tables.markdown,
            latex: tables.latex,
            csv: lambda frame: frame.to_csv(index=False),
        }
        if html is not None:
            from sdbench.records.store import read
            from sdbench.report.page import page

            html.write_text(page(read(results)), encoding="utf-8")
        for path, content in written.items():
            if path is not None:
                path.write_text(content(summary), encoding="utf-8")
        paths = [path for path in (html, markdown, csv, latex) if path is not None]
        for path in paths:
            console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", soft_wrap=True)
        if not paths:
            console.print(tables.summary_table(summary, width=console.width))
            console.print(tables.legend(summary), markup=False, highlight=False)


@app.command()
def rank(
    results: Annotated[Path, typer.Argument(help="folder of a study")],
    metric: Annotated[str, typer.Option(help="a metric of its images")] = "lpips",
) -> None:
    """Order a study's variants by a metric, and say which differences between them are clear."""
    with one_line_errors():
        from sdbench.analysis.ranking import ranking
        from sdbench.analysis.tables import PAIRS
        from sdbench.instruments.quality import find_metric
        from sdbench.records.store import read
        from sdbench.report.tables import ranking_text

        kind, _ = find_metric(metric)
        found = ranking(
            read(results, columns=PAIRS), kind.name, higher_is_better=bool(kind.higher_is_better)
        )
        console.print(ranking_text(found, kind.name))


@app.command()
def frontier(
    results: Annotated[Path, typer.Argument(help="folder of a study")],
    metric: Annotated[str, typer.Option(help="a metric of its images")] = "lpips",
    timing: Annotated[
        Path | None, typer.Option(help="folder of a study whose times count instead")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="where the picture goes; the study's folder by default")
    ] = None,
) -> None:
    """Order a study's variants by time, and mark those that no other beats in time and quality at once."""
    quiet()
    with one_line_errors():
        from sdbench.analysis.frontier import frontier as ordered
        from sdbench.analysis.tables import summarise
        from sdbench.instruments.quality import find_metric
        from sdbench.report.figures import frontier_figure
        from sdbench.report.tables import frontier_markdown

        kind, _ = find_metric(metric)
        other = None if timing is None else summarise(timing)
        found = ordered(
            summarise(results),
            kind.name,
            higher_is_better=bool(kind.higher_is_better),
            timing=other,
        )
        typer.echo(frontier_markdown(found))
        path = (out or results) / f"frontier-{kind.name}.png"
        frontier_figure(found, metric=kind.name).savefig(path)
        console.print(f"The picture is {path}", soft_wrap=True)


@app.command()
def distances(
    results: Annotated[Path, typer.Argument(help="folder of a study with its images")],
    features: Annotated[
        str, typer.Option(help="reader (mini-sd's) or inception (FID and KID)")
    ] = "reader",
    reference: Annotated[
        Path | None, typer.Option(help="folder of images; drawn scenes for the reader's")
    ] = None,
) -> None:
    """Compare the distribution of every variant's images with that of reference images."""
    quiet()
    with one_line_errors():
        from sdbench.experiments.distances import WARNING
        from sdbench.experiments.distances import distances as measured
        from sdbench.records.store import read
        from sdbench.report.tables import distances_text

        console.print(
            distances_text(measured(read(results), features=features, reference=reference))
        )
        console.print(WARNING, markup=False, highlight=False)
