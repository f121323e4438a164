"""What metrics say of known answers, and the mark of a metric that likes a bad one."""

from typing import Any

import pandas as pd
from rich.table import Table

from sdbench.analysis.known import LIKED, LIKES, answer_table
from sdbench.records.computed import PAIRED_METRIC
from sdbench.records.names import ANSWERS, STILL
from sdbench.report.tables.cells import MISSING, add_row, empty_table

MARK = "(!)"


def marked(heading: str, metric: str, table: pd.DataFrame) -> str:
    """A metric's heading, with a mark where it likes a bad answer.

    Args:
        heading: of its column.
        metric: its name.
        table: a summary, or what was made from one.
    """
    return f"{heading} {MARK}" if _liked(metric, table) else heading


def mark_legend(table: pd.DataFrame) -> list[str]:
    """One line for every metric that likes a bad answer.

    Args:
        table: a summary, or what was made from one.
    """
    metrics = [str(name).removesuffix(LIKES) for name in table if str(name).endswith(LIKES)]
    return [
        f"{MARK} {metric} does not put these clearly below the baseline's image: "
        f"{_liked(metric, table)}. Do not read it as quality."
        for metric in metrics
        if _liked(metric, table)
    ]


def with_marks(text: str, table: pd.DataFrame) -> str:
    """A table in Markdown, with a paragraph below it for what is marked in it."""
    return "\n\n".join([text, *mark_legend(table)])


def known_text(known: pd.DataFrame) -> Table:
    """Known answers for a terminal: a row per metric, means over the same prompts.

    Args:
        known: the table of that name.
    """
    table = answer_table(known)
    answers = (*ANSWERS, *([STILL] if STILL in set(table["answer"]) else []))
    head = ("metric", "baseline", *answers, "pairs")
    shown = empty_table(head, left=("metric",), no_wrap=("metric",))
    for metric, rows in table.groupby("metric", sort=False):
        by_answer = rows.set_index("answer")
        cells = [str(metric), _number(rows["baseline"].mean())]
        for answer in answers:
            there = answer in by_answer.index
            cell = _number(by_answer.loc[answer, "value"]) if there else MISSING
            liked = there and by_answer.loc[answer, "verdict"] == LIKED
            cells.append(f"{cell} {MARK}" if liked else cell)
        add_row(shown, [*cells, str(rows["pairs"].max())])
    return shown


KNOWN_LEGEND = (
    "Known answers: the mean of each metric for images that must be worse (a black frame, random "
    "pixels, the image of another prompt), for images as good (another seed) and for the same call "
    "again (the noise floor). baseline: the baseline's own image; a metric that compares with that "
    "image gets it with every value moved by one of 255 levels. "
    f"{MARK}: not shown to be worse than the baseline."
)


def known_legend(known: pd.DataFrame) -> str:
    """What the columns of `known_text` mean, where `known` is the table of that name."""
    if not (known["answer"] == STILL).any():
        return KNOWN_LEGEND
    return f"{KNOWN_LEGEND} {STILL}: the video's first frame all along."


def _liked(metric: str, table: pd.DataFrame) -> str:
    """The bad answers that a metric likes; empty where it likes none, or was not asked."""
    values = table[metric + LIKES].dropna() if metric + LIKES in table else pd.Series(dtype=str)
    return str(values.iloc[0]) if len(values) else ""


def _number(value: Any) -> str:
    return MISSING if pd.isna(value) else PAIRED_METRIC.text(value)
