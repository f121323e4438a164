"""Columns of any table against one of them."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.report.figures.style import (
    BASELINE_COLOUR,
    colour_at,
    error_bars,
    legend_outside,
    new_figure,
    open_frame,
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
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    groups = [("", table)] if by is None else list(table.groupby(by, sort=False))
    for axes, (column, text) in zip(rows, panels.items(), strict=True):
        for index, (name, group) in enumerate(groups):
            _draw_line(axes, group, across, column, index, name)
        _finish_panel(axes, text)

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


def _finish_panel(axes: Axes, text: str) -> None:
    """The axis begins at 0, or below where the data do."""
    axes.set_ylabel(text)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=min(0.0, axes.dataLim.y0))
    open_frame(axes)
