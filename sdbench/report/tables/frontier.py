"""The frontier of time and quality."""

import math
from typing import Any

import pandas as pd

from sdbench.analysis.dominance import BEATEN, EFFICIENT, OPEN, UNTIMED
from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.records.columns import PERCENT, Format
from sdbench.records.computed import FRONTIER, FRONTIER_METRIC, PAIRED_METRIC
from sdbench.records.names import reference_of
from sdbench.report.disturbance import in_markdown
from sdbench.report.tables.cells import MISSING, interval_text, markdown_lines
from sdbench.report.tables.known import marked, with_marks

CHANGED = "_changed"
MEDIAN = "_median"
BOLD = {EFFICIENT: "**{}**", OPEN: "*{}*", BEATEN: "{}", UNTIMED: "{}"}
"""How a name is set in Markdown, by what was shown of it."""
SHOWN = {
    EFFICIENT: "efficient",
    OPEN: "not told apart from {}",
    BEATEN: "beaten by {}",
    UNTIMED: "not timed",
}
LEGEND = (
    "Bold: every other variant was shown to be slower or worse. Plain: another one was shown to be "
    "better and as fast. Italic: neither was shown. Tests of all pairs, corrected by Holm."
)


def frontier_markdown(table: pd.DataFrame) -> str:
    """Every figure of a frontier in Markdown, fastest first, with what tests say of each variant.

    Fidelity to the baseline's image and quality in itself are named apart. Beside the mean of a
    metric with a threshold stand its median and the share of images that changed.

    Args:
        table: from `sdbench.analysis.frontier.frontier`.
    """
    columns = _columns(table)
    head = ["variant", FRONTIER["nfe"].heading, _time_heading(table), *columns.values()]
    head.append("verdict")
    lines = [head, ["---", *("---:" for _ in head[2:]), "---"]]
    for _, row in table.iterrows():
        name = BOLD[row["verdict"]].format(row["variant"])
        nfe = _nfe_text(row)
        cells = (_cell(row, column) for column in columns)
        lines.append([name, nfe, _saved(row), *cells, verdict_text(row)])
    return in_markdown(with_marks(markdown_lines(lines), table), table)


def _time_heading(table: pd.DataFrame) -> str:
    """What is saved, and in which calls where they are of another study."""
    heading = FRONTIER["denoise_saving"].heading
    if "timed_nfe" not in table:
        return heading
    batches = table["batch"].dropna().unique()
    images = " to ".join(f"{batch:g}" for batch in dict.fromkeys([batches.min(), batches.max()]))
    return f"{heading} (another study, {images} images a call)"


def _nfe_text(row: "pd.Series[Any]") -> str:
    """The evaluations, and those of the calls whose time stands beside them where they differ."""
    form = FRONTIER["nfe"].format
    own, timed = (form.text(row.get(name, row["nfe"])) for name in ("nfe", "timed_nfe"))
    return own if own == timed else f"{own} (timed at {timed})"


def _saved(row: "pd.Series[Any]") -> str:
    """The time of the loop that is saved, or that is predicted where nothing was timed."""
    form = FRONTIER["denoise_saving"].format
    if math.isnan(row["denoise_saving"]):
        return f"{MISSING} ({form.text(row['predicted_denoise_saving'])})"
    return interval_text(row, "denoise_saving", form)


def verdict_text(row: "pd.Series[Any]") -> str:
    """What was shown of a variant, and which other one that is due to."""
    return SHOWN[row["verdict"]].format(row["rival"])


def _columns(table: pd.DataFrame) -> dict[str, str]:
    """Headings by column: of metrics that hold a value, those that compare come first."""
    metrics = [
        name.removesuffix(MEDIAN)
        for name in map(str, table)
        if name.endswith(MEDIAN) and table[name.removesuffix(MEDIAN)].notna().any()
    ]
    columns = {}
    for name in sorted(metrics, key=WITHOUT_REFERENCE.__contains__):
        of = "prompt" if name in WITHOUT_REFERENCE else reference_of(table)
        columns[name] = marked(f"{name} (to {of})", name, table)
        if name + CHANGED in table:
            columns[name + MEDIAN] = "median"
            columns[name + CHANGED] = "changed %"
    return columns


def _cell(row: "pd.Series[Any]", name: str) -> str:
    """The baseline's distance to itself is no figure, and infinite where higher is better."""
    if not math.isfinite(row[name]):
        return MISSING
    return interval_text(row, name, _form(name))


def _form(column: str) -> Format:
    if column.endswith(CHANGED):
        return PERCENT
    return PAIRED_METRIC if column.endswith(MEDIAN) else FRONTIER_METRIC
