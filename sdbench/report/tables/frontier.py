"""The frontier of time and quality."""

import math

import pandas as pd

from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.records.computed import FRONTIER, FRONTIER_METRIC
from sdbench.records.names import BASELINE
from sdbench.report.tables.cells import MISSING, interval_text, markdown_lines

NOT_METRICS = ("saving", "denoise_saving", "alignment_difference")
"""Columns with an interval that the table shows elsewhere, or not at all."""


def frontier_markdown(table: pd.DataFrame) -> str:
    """Every figure of a frontier in Markdown, fastest first; efficient variants are bold.

    Fidelity to the baseline's image and quality in itself are named apart.

    Args:
        table: from `sdbench.analysis.frontier.frontier`.
    """
    metrics = _metrics(table)

    # What is compared is said with each metric: the baseline's image, or the prompt.
    titles = [
        f"{name} ({'to prompt' if name in WITHOUT_REFERENCE else f'to {BASELINE}'})"
        for name in metrics
    ]
    head = ["variant", *(column.heading for column in FRONTIER.values()), *titles]
    lines = [head, ["---", *("---:" for _ in head[1:])]]
    for _, row in table.iterrows():
        name = f"**{row['variant']}**" if row["efficient"] else str(row["variant"])
        nfe = FRONTIER["nfe"].format.text(row["nfe"])
        saved = interval_text(row, "denoise_saving", FRONTIER["denoise_saving"].format)
        lines.append([name, nfe, saved, *(_metric_cell(row, metric) for metric in metrics)])
    return markdown_lines(lines)


def _metrics(table: pd.DataFrame) -> list[str]:
    """Metrics that hold a value somewhere, those that compare with the baseline first."""
    names = [str(name) for name in table if f"{name}_lo" in table]
    metrics = [name for name in names if name not in NOT_METRICS and table[name].notna().any()]
    return sorted(metrics, key=WITHOUT_REFERENCE.__contains__)


def _metric_cell(row: "pd.Series[float]", metric: str) -> str:
    """The baseline's distance to itself is no figure, and infinite where higher is better."""
    if not math.isfinite(row[metric]):
        return MISSING
    return interval_text(row, metric, FRONTIER_METRIC)
