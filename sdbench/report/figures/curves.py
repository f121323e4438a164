"""Columns of any table against one of them."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.report.disturbance import SAVING
from sdbench.report.figures.style import (
    BASELINE_COLOUR,
    SMALL,
    WARNING,
    colour_at,
    decided,
    error_bars,
    legend_outside,
    new_figure,
    open_frame,
    say_first,
)


def curves_figure(
    table: pd.DataFrame,
    across: str,
    panels: Mapping[str, str],
    *,
    label: str,
    by: str | None = None,
    log: bool = False,
) -> Figure:
    """Columns against one of them, a panel each, with 95 % intervals where the table has them.

    Args:
        table: with `_lo` and `_hi` behind the columns that have intervals.
        across: the column of the horizontal axis.
        panels: columns to draw, with the text of their axes.
        label: text of the horizontal axis.
        by: column whose values have a line each.
        log: the horizontal axis doubles.
    """
    figure = new_figure(7, 0.6 + 2.2 * len(panels))
    say_first(figure, table)
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    groups = [("", table)] if by is None else list(table.groupby(by, sort=False))
    for axes, (column, text) in zip(rows, panels.items(), strict=True):
        for index, (name, group) in enumerate(groups):
            _draw_line(axes, group, across, column, index, name)
        _finish_panel(axes, text, _undrawn(table, column))

    # The panels share their horizontal axis, so the last one speaks for all.
    if log:
        rows[-1].set_xscale("log", base=2)
        rows[-1].xaxis.set_major_formatter("{x:g}")
    rows[-1].set_xlabel(label)
    if by is not None:
        legend_outside(rows[0])
    return figure


def _draw_line(
    axes: Axes, group: pd.DataFrame, across: str, column: str, index: int, name: Any
) -> None:
    if _is_saving(group, column):
        group = decided(group, column)
    axes.errorbar(
        group[across],
        group[column],
        yerr=error_bars(group, column) if f"{column}_lo" in group else None,
        marker="o",
        markersize=4,
        elinewidth=0.8,
        color=BASELINE_COLOUR if index == 0 else colour_at(index - 1),
        label=name,
    )


def _is_saving(table: pd.DataFrame, column: str) -> bool:
    """Whether a column is a saving of time with its interval."""
    return column.endswith(SAVING) and f"{column}_lo" in table


def _undrawn(table: pd.DataFrame, column: str) -> int:
    """How many points of a panel are undecided, and so not drawn."""
    return len(table) - len(decided(table, column)) if _is_saving(table, column) else 0


def _finish_panel(axes: Axes, text: str, undrawn: int) -> None:
    """The axis begins at 0, or below where the data do."""
    axes.set_ylabel(text)
    if undrawn:
        axes.set_title(f"{undrawn} undecided, not drawn", fontsize=SMALL, color=WARNING)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=min(0.0, axes.dataLim.y0))
    open_frame(axes)
