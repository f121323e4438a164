"""The summary of a study: for the terminal, Markdown, LaTeX and a page, and its legend."""

import math
import re
import textwrap
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from rich.table import Table

from sdbench.analysis.known import OTHER_SEED
from sdbench.records.columns import MILLISECONDS, Column
from sdbench.records.computed import SUMMARY
from sdbench.records.metrics import MANY, SCALES
from sdbench.records.names import BASELINE, reference_of
from sdbench.report.disturbance import (
    WORD,
    disturbance_note,
    in_markdown,
    short_time_legend,
    time_legend,
)
from sdbench.report.tables.cells import (
    MISSING,
    add_row,
    empty_table,
    interval_text,
    markdown_lines,
)
from sdbench.report.tables.known import mark_legend, marked, with_marks

NAME_WIDTH = 16  # longer names of variants are folded
NARROW = 80  # columns of a terminal that the table fits, unless it is wide
WITH_INTERVAL = (
    *("saving", "predicted_saving", "lpips", "lpips_median", "lpips_changed"),
    "alignment_difference",
    "flicker_difference",
)
WIDE_ONLY = (
    *("denoise_saving", "ideal_saving", "predicted_saving", "full_forwards", "peak_bytes"),
    *("energy_j", "idle_w"),
    *("lpips_median", "lpips_worst", "flicker_difference", "alignment_difference"),
)
"""Columns that are left to the wide table."""
SPARE = ("latency_s", "flicker")
"""Columns that give way, in turn, where what is left does not fit either."""
SHORT = {
    "nfe": "denoiser evaluations per image; a guided step has two.",
    "latency_s": "median time of one call.",
    "saving": f"share of the time of `{BASELINE}` that is saved.",
    "lpips": "mean perceived distance to the image of `{reference}`; 0 is identical.",
    "lpips_changed": f"images with an LPIPS above {SCALES['lpips'].changed:g}: they tend to show "
    "something else.",
}
"""What a newcomer asks first of a column; the wide legend says the rest."""
PER_CALL = re.compile(r" (m?s/)")  # the unit of a call's time
SAMPLES = {"image": "image", "video": "video", "audio": "clip"}
"""What a call makes one of for every pair, by the output of the study."""
OUTPUTS = {
    "video": "Every image is a frame here: a metric is the mean over the frames of a video.",
    "audio": "Of audio only time and memory are measured: metrics judge images and videos.",
}
"""What the legend says of an output that is no image."""
FOOTNOTE = (
    "[lo,hi]: 95 % confidence interval. -: not measured. No [lo,hi]: too few samples for an "
    f"interval; a mean of LPIPS needs {MANY} prompts."
)
SHORT_FOOTNOTE = "[lo,hi]: 95 % interval, where there are enough samples. --wide: every column."


def summary_table(summary: pd.DataFrame, *, wide: bool = False) -> Table:
    """The summary for a terminal, one line per variant.

    Args:
        summary: of `sdbench.analysis.tables.summarise`.
        wide: every column; otherwise those that a newcomer asks for, within 80 columns.
    """
    columns = _shown(summary)
    if not wide:
        columns = _narrowed(summary, columns)
    table = empty_table(
        _headings(columns),
        left=("variant",),
        no_wrap=_headings(columns),
        note=disturbance_note(summary),
    )
    for row in _rows(summary, columns):
        add_row(table, row)
    return table


def _narrowed(summary: pd.DataFrame, columns: dict[str, Column]) -> dict[str, Column]:
    """The columns of the narrow table: as many as fit."""
    columns = {name: column for name, column in columns.items() if name not in WIDE_ONLY}
    for name in SPARE:
        if _width(summary, columns) <= NARROW:
            break
        columns.pop(name, None)
    return columns


def _headings(columns: dict[str, Column]) -> tuple[str, ...]:
    """Labels, with the unit below those that have a long one."""
    return ("variant", *(PER_CALL.sub(r"\n\1", column.heading) for column in columns.values()))


def _rows(summary: pd.DataFrame, columns: dict[str, Column]) -> list[list[str]]:
    """The cells of a table for a terminal."""
    rows = []
    for _, row in summary.iterrows():
        cells = [_cell(row, name, column) for name, column in columns.items()]
        names = list(columns)
        # The share that changed says how sure it is; beside it the mean need not.
        if "lpips_changed" in columns and "lpips_median" not in columns:
            place = names.index("lpips")
            cells[place] = cells[place].partition(" ")[0]
        if "saving" in columns and "predicted_saving" not in columns and _is_untimed(row):
            expected = SUMMARY["predicted_saving"].format.text(row["predicted_saving"])
            cells[names.index("saving")] = f"({expected})"
        rows.append([textwrap.fill(_variant(row), NAME_WIDTH), *cells])
    return rows


def _width(summary: pd.DataFrame, columns: dict[str, Column]) -> int:
    """Columns of a terminal that a table takes, with a blank behind each of its own."""
    lines = zip(_headings(columns), *_rows(summary, columns), strict=True)
    return sum(max(len(text) for cell in cells for text in cell.split("\n")) + 1 for cells in lines)


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


def legend(summary: pd.DataFrame, *, wide: bool = False) -> str:
    """What the columns of the summary's table mean, one line each; `wide` as for the table."""
    columns = _shown(summary)
    if not wide:
        columns = _narrowed(summary, columns)
    told = {name: SUMMARY[name].meaning for name in columns} | ({} if wide else SHORT)
    reference = reference_of(summary)
    if reference != BASELINE:
        told["lpips"] = SHORT["lpips"]  # the long meaning speaks of the baseline's second run
    meanings = [
        f"{column.label}: {told[name].replace('{reference}', reference)}"
        for name, column in columns.items()
    ]
    if "output" in summary:
        meanings.append(OUTPUTS[summary["output"].iloc[0]])
    scales = [
        f"{column.label} {column.format.text(summary[name + OTHER_SEED].iloc[0])}"
        for name, column in columns.items()
        if name + OTHER_SEED in summary
    ]
    if scales:
        meanings.append(f"Another seed of the same prompt, as good: {', '.join(scales)}.")
    if wide:
        times, last = time_legend(summary), FOOTNOTE
    else:
        times, last = short_time_legend(summary), SHORT_FOOTNOTE
    return "\n".join([*meanings, *mark_legend(summary), *times, last])


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
