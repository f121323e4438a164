"""The summary of a study as text: for the terminal, for Markdown, and the legend that explains it.

Seconds become milliseconds, bytes megabytes and shares percent here and in `figures.py` only; nothing is computed.
"""

import math
import textwrap
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.records.names import BASELINE

MISSING = "-"
WIDE = 110  # terminal columns below which the narrow table is shown
NAME_WIDTH = 14  # longer names of variants are folded
FOOTNOTE = "[lo,hi]: 95 % confidence interval. -: not measured; without [lo,hi]: too few samples for an interval."


@dataclass(frozen=True)
class _Column:
    heading: str
    unit: str
    source: str
    form: str
    meaning: str
    factor: float = 1
    interval: bool = False
    narrow: bool = True  # also in a narrow table


_LATENCY_MEANING = "median wall time of one pipeline call."
_SECONDS = _Column("time", "s", "latency_s", "z.2f", _LATENCY_MEANING)
_MILLISECONDS = _Column("time", "ms", "latency_s", "z.0f", _LATENCY_MEANING, factor=1e3)
_COLUMNS = (
    _Column(
        "NFE",
        "",
        "nfe",
        ".4g",
        "denoiser evaluations per image: two in a guided step, one in an unguided step.",
    ),
    _SECONDS,
    _Column(
        "saving",
        "%",
        "saving",
        "z.1f",
        "share of the time of `cfg` that the variant saves, call against call within each repeat; "
        "where the interval holds 0, no saving was shown.",
        factor=100,
        interval=True,
    ),
    _Column(
        "loop",
        "%",
        "denoise_saving",
        "z.1f",
        "the same in the denoising loop alone.",
        factor=100,
        narrow=False,
    ),
    _Column(
        "ideal", "%", "ideal_saving", "z.1f", "saving if time were proportional to NFE.", factor=100
    ),
    _Column(
        "predicted",
        "%",
        "predicted_saving",
        "z.1f",
        "saving to expect from what a guided and an unguided step took in this study.",
        factor=100,
    ),
    _Column(
        "memory",
        "MB",
        "peak_bytes",
        ".0f",
        "highest memory peak of a call.",
        factor=1e-6,
        narrow=False,
    ),
    _Column(
        "LPIPS",
        "",
        "lpips",
        "z.3f",
        "perceived distance to the image that `cfg` makes of the same prompt and seed; 0 is identical. "
        "In the row `cfg`: of a second run of `cfg`, the noise floor; less cannot be told from no change.",
        interval=True,
    ),
    _Column(
        "alignment",
        "",
        "alignment",
        "z.2f",
        "share of the caption's attributes that the image shows.",
    ),
    _Column(
        "change",
        "",
        "alignment_difference",
        "+z.2f",
        "alignment less that of `cfg`, pair by pair.",
        interval=True,
        narrow=False,
    ),
)


def summary_table(summary: pd.DataFrame, *, width: int = 120) -> Table:
    """The summary for a terminal of `width` columns.

    Below 110 it keeps the columns that matter most and writes intervals below their estimates, which fits 80.
    """
    wide = width >= WIDE
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("variant", no_wrap=True)
    shown = [column for column in _shown(summary) if wide or column.narrow]
    for column in shown:
        heading = f"{column.heading}\n{column.unit}".rstrip()
        # Only an interval may wrap: rich cuts off what does not fit and may not wrap.
        table.add_column(heading, justify="right", no_wrap=not (wide and column.interval))
    for _, row in summary.iterrows():
        cells = [
            _cell(row, column) if wide else _cell(row, column).replace(" ", "\n")
            for column in shown
        ]
        table.add_row(*map(Text, [textwrap.fill(_name(row), NAME_WIDTH), *cells]))
    return table


@dataclass(frozen=True)
class Cell:
    """One figure of the summary: as it is read, its interval, and the number to sort by."""

    text: str
    interval: str
    value: Any


def summary_cells(summary: pd.DataFrame) -> tuple[list[str], list[list[Cell]]]:
    """The wide table as headings and cells, for a page."""
    shown = _shown(summary)
    head = ["variant", *(f"{column.heading} {column.unit}".rstrip() for column in shown)]
    rows = []
    for _, row in summary.iterrows():
        cells = [Cell(_name(row), "", str(row["variant"]))]
        for column in shown:
            text, _, interval = _cell(row, column).partition(" ")
            cells.append(Cell(text, interval, column.factor * float(row[column.source])))
        rows.append(cells)
    return head, rows


def failures(runs: pd.DataFrame) -> list[str]:
    """What failed or could not run, one line per variant and reason."""
    bad = runs[runs["status"] != "ok"].drop_duplicates(["variant", "status", "message"])
    return [
        f"{status}: {variant}: {message}"
        for status, variant, message in bad[["status", "variant", "message"]].to_numpy()
    ]


def latex(summary: pd.DataFrame) -> str:
    """The wide table in LaTeX, for the package booktabs."""
    head, rows = summary_cells(summary)
    text = pd.DataFrame(
        [[f"{cell.text} {cell.interval}".rstrip() for cell in row] for row in rows], columns=head
    )
    return str(text.to_latex(index=False, escape=True, column_format="l" + "r" * (len(head) - 1)))


def markdown(summary: pd.DataFrame) -> str:
    """The wide table in Markdown."""
    shown = _shown(summary)
    lines = [
        ["variant", *(f"{column.heading} {column.unit}".rstrip() for column in shown)],
        ["---", *("---:" for _ in shown)],
        *([_name(row), *(_cell(row, column) for column in shown)] for _, row in summary.iterrows()),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def legend(summary: pd.DataFrame) -> str:
    """What the columns of the summary's table mean, one line each."""
    return "\n".join(
        [*(f"{column.heading}: {column.meaning}" for column in _shown(summary)), FOOTNOTE]
    )


def _shown(summary: pd.DataFrame) -> list[_Column]:
    """Columns that hold a value somewhere; short times are shown in milliseconds."""
    time = _SECONDS if summary["latency_s"].max() >= 1 else _MILLISECONDS
    columns = (time if column is _SECONDS else column for column in _COLUMNS)
    return [
        column
        for column in columns
        if column.source in summary and summary[column.source].notna().any()
    ]


def _name(row: "pd.Series[float]") -> str:
    """The variant, with the number of its failed calls, or that it cannot run."""
    if row["unsupported"]:
        return f"{row['variant']} (unsupported)"
    return f"{row['variant']} ({row['failed']} failed)" if row["failed"] else str(row["variant"])


def _cell(row: "pd.Series[float]", column: _Column) -> str:
    ends = (column.source, f"{column.source}_lo", f"{column.source}_hi")
    estimate, lo, hi = (column.factor * row.get(name, math.nan) for name in ends)
    if math.isnan(estimate):
        return MISSING
    if not column.interval or math.isnan(lo):
        return format(estimate, column.form)
    return f"{estimate:{column.form}} [{lo:{column.form}},{hi:{column.form}}]"


def plan_text(table: pd.DataFrame, metric: str) -> Table:
    """Plans and their controls for a terminal, from `sdbench.analysis.frontier.plan_table`; intervals may wrap."""
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    for heading in ("variant", "NFE", "time saved", metric, "worse than the plan", "verdict"):
        names = heading in ("variant", "verdict")
        shown.add_column(heading, justify="left" if names else "right", no_wrap=names)
    for _, row in table.iterrows():
        planned = row["variant"] == "plan"
        cells = [f"plan of {row['unguided']}" if planned else row["variant"], f"{row['nfe']:g}"]
        cells += [_with_ends(row, "saving", ".0%"), _with_ends(row, metric, ".4f")]
        cells += [MISSING if planned else _with_ends(row, "worse", "+.4f"), row["verdict"]]
        shown.add_row(*map(Text, cells))
    return shown


def frontier_markdown(table: pd.DataFrame) -> str:
    """Every figure of a frontier in Markdown, fastest first; efficient variants are bold.

    Fidelity to the baseline's image and quality in itself are named apart.
    """
    metrics = [
        str(name)
        for name in table
        if f"{name}_lo" in table and name not in ("saving", "denoise_saving")
    ]
    shown = [
        name for name in metrics if name != "alignment_difference" and table[name].notna().any()
    ]
    shown.sort(key=WITHOUT_REFERENCE.__contains__)
    titles = [
        f"{name} ({'to prompt' if name in WITHOUT_REFERENCE else 'to cfg'})" for name in shown
    ]
    head = ["variant", "NFE", "loop saved %", *titles]
    lines: list[list[str]] = [head, ["---", *("---:" for _ in head[1:])]]
    for _, row in table.iterrows():
        name = f"**{row['variant']}**" if row["efficient"] else str(row["variant"])
        scaled = pd.Series(
            {
                key: 100 * row[key]
                for key in ("denoise_saving", "denoise_saving_lo", "denoise_saving_hi")
            }
        )
        cells = [name, f"{row['nfe']:.4g}", _with_ends(scaled, "denoise_saving", ".1f")]
        cells += [
            MISSING if not math.isfinite(row[metric]) else _with_ends(row, metric, ".3f")
            for metric in shown
        ]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comparison_text(table: pd.DataFrame) -> Table:
    """A comparison of two runs for a terminal: what is not the same, or one line that all is."""
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    for heading in _COMPARED:
        shown.add_column(
            heading, justify="left" if heading in ("variant", "figure", "verdict") else "right"
        )
    for _, row in _told(table).iterrows():
        shown.add_row(*map(Text, _compared(row)))
    return shown


def comparison_markdown(table: pd.DataFrame) -> str:
    """The same for a pull request."""
    lines = [
        list(_COMPARED),
        ["---"] * len(_COMPARED),
        *(_compared(row) for _, row in _told(table).iterrows()),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


_COMPARED = ("variant", "figure", "baseline", "current", "change", "verdict")


def _told(table: pd.DataFrame) -> pd.DataFrame:
    """Times, and every other figure that is not the same."""
    return table[(table["verdict"] != "same") | table["figure"].str.startswith("time")]


def _compared(row: "pd.Series[Any]") -> list[str]:
    relative = str(row["figure"]).startswith("time") or row["figure"] == "peak_bytes"
    scaled = row.copy()
    for name in ("change", "change_lo", "change_hi"):
        scaled[name] = row[name] * (100 if relative else 1)
    change = _with_ends(scaled, "change", "+.2f" if relative else "+.4g") + (
        " %" if relative else ""
    )
    verdict = str(row["verdict"])
    if row["repeats_needed"] is not None and not pd.isna(row["repeats_needed"]):
        verdict += f", {row['repeats_needed']:g} repeats would decide"
    if row["unstable"]:
        verdict += f", unstable: {row['unstable']}"
    return [
        row["variant"],
        row["figure"],
        f"{row['baseline']:.6g}",
        f"{row['current']:.6g}",
        change,
        verdict,
    ]


def ranking_text(table: pd.DataFrame, metric: str) -> Table:
    """A ranking for a terminal, from `sdbench.analysis.ranking.ranking`."""
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    for heading in ("rank", metric, "variant"):
        shown.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    for _, row in table.iterrows():
        best, worst = row["best_rank"], row["worst_rank"]
        shown.add_row(
            str(best) if best == worst else f"{best} to {worst}",
            _with_ends(row, metric, ".4f"),
            row["variant"],
        )
    return shown


def distances_text(table: pd.DataFrame) -> Table:
    """Distances between distributions for a terminal, from the table of that name, nearest first."""
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    for heading in ("distance", "value", f"more than {BASELINE}", "variant"):
        shown.add_column(
            heading, justify="left" if heading in ("distance", "variant") else "right", no_wrap=True
        )
    for _, row in table.sort_values(["distance", "value"]).iterrows():
        name = f"{row['distance']}, {row['features']}"
        difference = (
            MISSING if row["variant"] == BASELINE else _with_ends(row, "difference", "+.4g")
        )
        shown.add_row(name, _with_ends(row, "value", ".4g"), difference, row["variant"])
    return shown


def _with_ends(row: "pd.Series[Any]", name: str, form: str) -> str:
    estimate, lo, hi = (row[column] for column in (name, f"{name}_lo", f"{name}_hi"))
    return f"{estimate:{form}}" if pd.isna(lo) else f"{estimate:{form}} [{lo:{form}},{hi:{form}}]"
