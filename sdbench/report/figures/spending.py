"""Budgets, and what each way of spending them makes of it."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.analysis.spending import WAY, best_of_ways
from sdbench.report.figures.style import (
    colour_at,
    dash_at,
    error_bars,
    legend_outside,
    new_figure,
    open_frame,
)

UNITS = {"nfe": "denoiser evaluations an image", "seconds": "seconds an image"}


def spending_figure(tables: dict[str, pd.DataFrame], *, reference: str) -> Figure:
    """A metric over what an image may cost, one line per method and scheduler.

    Each point is the candidate that the tuning pairs put first, on the held-out pairs, with its
    95 % interval.

    Args:
        tables: of `sdbench.analysis.spending.spending_table`, by metric; one panel each.
        reference: the variant that images are compared with.
    """
    figure = new_figure(8.5, 1 + 3.2 * len(tables))
    panels = figure.subplots(len(tables), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (metric, table) in zip(panels, tables.items(), strict=True):
        _draw(axes, best_of_ways(table), metric)
        to = "" if metric in WITHOUT_REFERENCE else f" to {reference}"
        axes.set_ylabel(f"{metric}{to}, mean")
        open_frame(axes)
    first = next(iter(tables.values()))
    panels[-1].set_xlabel(UNITS[str(first["budget_unit"].iloc[0])])
    legend_outside(panels[0])
    return figure


def _draw(axes: Axes, ways: pd.DataFrame, metric: str) -> None:
    """One line per method and scheduler; methods have their colours, schedulers their dashes."""
    methods = list(dict.fromkeys(ways["method"]))
    schedulers = list(dict.fromkeys(ways["scheduler"]))
    for (method, scheduler), own in ways.groupby(WAY, sort=False):
        points = own.sort_values("budget")
        axes.errorbar(
            points["budget"],
            points[metric],
            yerr=error_bars(points, metric),
            label=f"{method}, {scheduler}" if len(schedulers) > 1 else method,
            color=colour_at(methods.index(method)),
            linestyle=dash_at(schedulers.index(scheduler) * 6),
            marker="o",
            markersize=3.5,
            linewidth=1.2,
            elinewidth=0.7,
        )
    axes.set_xscale("log")
    axes.set_xticks(sorted(ways["budget"].unique()))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    if metric not in WITHOUT_REFERENCE:
        axes.set_yscale("log")
