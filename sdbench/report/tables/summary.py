"""The summary of a study: for the terminal, Markdown, LaTeX and a page, and its legend."""

import math
import textwrap
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from rich.table import Table

from sdbench.analysis.known import OTHER_SEED
from sdbench.records.columns import MILLISECONDS, Column
from sdbench.records.computed import SUMMARY
from sdbench.records.metrics import MANY
from sdbench.report.disturbance import WORD, disturbance_note, in_markdown, time_legend
from sdbench.report.tables.cells import (
    MISSING,
    add_row,
    empty_table,
    interval_text,
    markdown_lines,
)
from sdbench.report.tables.known import mark_legend, marked, with_marks

NAME_WIDTH = 14  # longer names of variants are folded
WITH_INTERVAL = (
    *("saving", "predicted_saving", "lpips", "lpips_median", "lpips_changed"),
    "alignment_difference",
    "flicker_difference",
)
FROM_WIDTH = {
    "denoise_saving": 120,
    "ideal_saving": 120,
    "alignment_difference": 120,
    "lpips_worst": 120,
    "flicker_difference": 120,
    "flicker": 140,
    "predicted_saving": 140,
    "peak_bytes": 140,
}
"""Columns of a terminal from which a figure is shown; the others always are."""
SAMPLES = {"image": "image", "video": "video", "audio": "clip"}
"""What a call makes one of for every pair, by the output of the study."""
MEAN_WIDTH = 120  # below it the median and the share have an interval, and the mean of LPIPS none
OUTPUTS = {
    "video": "Every image is a frame here: a metric is the mean over the frames of a video.",
    "audio": "Of audio only time and memory are measured: metrics judge images and videos.",
}
"""What the legend says of an output that is no image."""
FOOTNOTE = (
    "[lo,hi]: 95 % confidence interval. -: not measured; without [lo,hi]: too few samples for an "
    f"interval; that of a mean of LPIPS takes {MANY} prompts."
)


def summary_table(summary: pd.DataFrame, *, width: int = 120) -> Table:
    """The summary for a terminal of `width` columns.

    Intervals stand below their estimates. It has all columns from 140 on, and keeps those that
    matter most below, which fits 80.
    """
    columns = {
        name: column for name, column in _shown(summary).items() if width >= FROM_WIDTH.get(name, 0)
    }
    headings = {
        name: f"{column.label} {column.format.unit}".rstrip().replace(" ", "\n")
        for name, column in columns.items()
    }

    table = empty_table(
        ("variant", *headings.values()),
        left=("variant",),
        no_wrap=("variant", *headings.values()),
        note=disturbance_note(summary),
    )
    for _, row in summary.iterrows():
        cells = [_cell(row, name, column).replace(" ", "\n") for name, column in columns.items()]
        if width < MEAN_WIDTH and "lpips" in columns:
            place = list(columns).index("lpips")
            cells[place] = cells[place].partition("\n")[0]
        if "predicted_saving" not in columns and _is_untimed(row):
            expected = SUMMARY["predicted_saving"].format.text(row["predicted_saving"])
            cells[list(columns).index("saving")] = f"{MISSING}\n({expected})"
        add_row(table, [textwrap.fill(_variant(row), NAME_WIDTH), *cells])
    return table


@dataclass(frozen=True)
class Cell:
    """One figure of the summary: as it is read, its interval, and the number to sort by."""

    text: str
    interval: str
    value: Any


def summary_cells(summary: pd.DataFrame) -> tuple[list[str], list[list[Cell]]]:
    """The wide table as headings and cells, for a page."""
    columns = _shown(summary)
    rows = []
    for _, row in summary.iterrows():
        cells = [Cell(_variant(row), "", str(row["variant"]))]
        for name, column in columns.items():
            text, _, interval = _cell(row, name, column).partition(" ")
            value = math.nan if text == WORD else column.format.factor * float(row[name])
            cells.append(Cell(text, interval, value))
        rows.append(cells)
    return _head(columns), rows


def remarks(runs: pd.DataFrame) -> list[str]:
    """What failed, could not run or is to be noted, one line per variant and reason."""
    told = runs[runs["message"].notna()].drop_duplicates(["variant", "status", "message"])
    return [
        f"{'note' if status == 'ok' else status}: {variant}: {message}"
        for status, variant, message in told[["status", "variant", "message"]].to_numpy()
    ]


def latex(summary: pd.DataFrame) -> str:
    """The wide table in LaTeX, for the package booktabs."""
    head, rows = summary_cells(summary)
    texts = [[f"{cell.text} {cell.interval}".rstrip() for cell in row] for row in rows]
    layout = "l" + "r" * (len(head) - 1)
    table = pd.DataFrame(texts, columns=head)
    text = str(table.to_latex(index=False, escape=True, column_format=layout))
    note = disturbance_note(summary)
    above = [f"\\textbf{{{_for_latex(note)}}}\\par"] if note else []
    below = [f"\\par {_for_latex(line)}\n" for line in time_legend(summary)]
    return "\n".join([*above, text, *below])


def _for_latex(text: str) -> str:
    """A line of ours in LaTeX; names of variants may hold what it reads as its own."""
    return "".join(f"\\{sign}" if sign in "%&#_$" else sign for sign in text)


def markdown(summary: pd.DataFrame) -> str:
    """The wide table in Markdown."""
    columns = _shown(summary)
    lines = [_head(columns), ["---", *("---:" for _ in columns)]]
    for _, row in summary.iterrows():
        cells = (_cell(row, name, column) for name, column in columns.items())
        lines.append([_variant(row), *cells])
    return in_markdown(with_marks(markdown_lines(lines), summary), summary) + "\n"


def legend(summary: pd.DataFrame) -> str:
    """What the columns of the summary's table mean, one line each."""
    meanings = [f"{column.label}: {column.meaning}" for column in _shown(summary).values()]
    if "output" in summary:
        meanings.append(OUTPUTS[summary["output"].iloc[0]])
    scales = [
        f"{column.label} of another seed of the same prompt, which is as good: "
        f"{column.format.text(summary[name + OTHER_SEED].iloc[0])}."
        for name, column in _shown(summary).items()
        if name + OTHER_SEED in summary
    ]
    return "\n".join([*meanings, *scales, *mark_legend(summary), *time_legend(summary), FOOTNOTE])


def _shown(summary: pd.DataFrame) -> dict[str, Column]:
    """Columns that hold a value somewhere; short times are shown in milliseconds."""
    columns = {
        name: replace(column, label=marked(column.label, name, summary))
        for name, column in SUMMARY.items()
        if name in summary and summary[name].notna().any()
    }
    if "latency_s" in columns:
        form = columns["latency_s"].format if summary["latency_s"].max() >= 1 else MILLISECONDS
        form = replace(form, unit=f"{form.unit}{_images(summary)}")
        columns["latency_s"] = replace(columns["latency_s"], format=form)
    return columns


def _images(summary: pd.DataFrame) -> str:
    """How many images, or what else, a call makes, behind the unit of its time."""
    one = SAMPLES[summary["output"].iloc[0] if "output" in summary else "image"]
    batches = summary["batch"].dropna()
    fewest, most = (f"{batch:g}" for batch in (batches.min(), batches.max()))
    if most == "1":
        return f"/{one}"
    return f"/{most} {one}s" if fewest == most else f"/{fewest} to {most} {one}s"


def _head(columns: dict[str, Column]) -> list[str]:
    return ["variant", *(column.heading for column in columns.values())]


def _variant(row: "pd.Series[Any]") -> str:
    """The variant, with the number of its failed calls, or that it cannot run."""
    if row["unsupported"]:
        return f"{row['variant']} (unsupported)"
    return f"{row['variant']} ({row['failed']} failed)" if row["failed"] else str(row["variant"])


def _is_untimed(row: "pd.Series[Any]") -> bool:
    """Whether a variant has no time of its own, and a predicted one."""
    return math.isnan(row["saving"]) and not math.isnan(row.get("predicted_saving", math.nan))


def _cell(row: "pd.Series[Any]", name: str, column: Column) -> str:
    """The estimate, with its interval where the table has room for one and there is one."""
    if math.isnan(row[name]):
        return MISSING
    text = interval_text(row, name, column.format)
    # Without room for the interval only the figure stands, or the word instead of it.
    return text if name in WITH_INTERVAL else text.partition(" ")[0]
