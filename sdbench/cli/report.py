"""`sdbench report`: a finished study as text, table files and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sdbench.cli.console import command, console, print_summary
from sdbench.cli.options import Markdown, Results, Wide, written

_Html = Annotated[Path | None, written(help="file for a page with table, figures and images")]
_Csv = Annotated[Path | None, written(help="file for the summary, nothing rounded")]
_Latex = Annotated[Path | None, written(help="file for the table in LaTeX (booktabs)")]


@command
def report(
    results: Results,
    html: _Html = None,
    markdown: Markdown = None,
    csv: _Csv = None,
    latex: _Latex = None,
    wide: Wide = False,
) -> None:
    """Print a study's table, or write it as a page, Markdown, CSV or LaTeX."""
    from sdbench.analysis.tables import summarise
    from sdbench.report import tables

    summary = summarise(results)
    if html is not None:
        # The page alone takes every column.
        from sdbench.records.store import read
        from sdbench.report.page import page

        html.write_text(page(read(results)), encoding="utf-8")
    if markdown is not None:
        markdown.write_text(tables.markdown(summary), encoding="utf-8")
    if csv is not None:
        csv.write_text(summary.to_csv(index=False), encoding="utf-8")
    if latex is not None:
        latex.write_text(tables.latex(summary), encoding="utf-8")

    # What was written, or else the table.
    paths = [path for path in (html, markdown, csv, latex) if path is not None]
    for path in paths:
        console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", soft_wrap=True)
    if not paths:
        print_summary(summary, wide=wide)
        console.print(tables.legend(summary, wide=wide), markup=False, highlight=False)
        _print_known(results)


def _print_known(results: Path) -> None:
    """What the metrics say of known answers, where the study has any."""
    from sdbench.records.results import read_known
    from sdbench.report import tables

    answers = read_known(results)
    if len(answers):
        console.print(tables.known_text(answers))
        console.print(tables.known_legend(answers), markup=False, highlight=False)
