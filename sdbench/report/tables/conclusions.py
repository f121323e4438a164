"""The conclusions of the suite, model by model."""

from typing import Any

import pandas as pd

from sdbench.records.columns import PERCENT
from sdbench.report.tables.cells import interval_text, markdown_lines


def conclusions_markdown(table: pd.DataFrame) -> str:
    """A line per conclusion and a column per model, in Markdown.

    Args:
        table: from `sdbench.analysis.conclusions.conclusions`.
    """
    models = list(dict.fromkeys(table["model"]))
    lines = [["conclusion", *models], ["---"] * (1 + len(models))]
    for says, of_model in table.groupby("conclusion", sort=False):
        rows = of_model.set_index("model")
        lines.append([str(says), *(_cell(rows.loc[model]) for model in models)])
    return markdown_lines(lines)


def _cell(row: "pd.Series[Any]") -> str:
    """The verdict, and what decides it: the share of the pairs in which the first is nearer."""
    share = interval_text(row, "share", PERCENT)
    word = "better" if row["metric"] == "alignment" else "nearer"
    return (
        f"**{row['verdict']}**: `{row['first']}` against `{row['against']}` is {row['found']}; "
        f"{word} in {share} % of the pairs that differ, of {row['pairs']}; mean difference "
        f"{row['difference']:+.4f} [{row['difference_lo']:+.4f}, {row['difference_hi']:+.4f}]"
    )
