"""Plans and their controls, in time and a metric."""

import pandas as pd
from matplotlib.figure import Figure

from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.records.computed import SUMMARY
from sdbench.records.names import PLANNED, split_name
from sdbench.report.figures.style import (
    BASELINE_COLOUR,
    colour_at,
    dash_at,
    error_bars,
    legend_outside,
    new_figure,
    open_frame,
)


def plan_figure(table: pd.DataFrame, metric: str) -> Figure:
    """Time saved against a metric for planned schedules and their controls, with 95 % intervals.

    Args:
        table: from `sdbench.analysis.plans.plan_table`.
        metric: the one that it was made for.
    """
    figure = new_figure(7.5, 4.5)
    axes = figure.subplots()
    form = SUMMARY["saving"].format

    # One line per kind of variant, joined in the order of time saved; the plan's comes first.
    kinds = table["variant"].map(lambda name: split_name(name)[0])

    for index, (kind, variants) in enumerate(table.groupby(kinds, sort=False)):
        points = variants.sort_values("saving")
        axes.errorbar(
            form.shown(points["saving"]),
            points[metric],
            xerr=error_bars(points, "saving", form),
            yerr=error_bars(points, metric),
            label=kind,
            color=BASELINE_COLOUR if kind == PLANNED else colour_at(index - 1),
            marker="o",
            markersize=4,
            linestyle=dash_at(max(index - 1, 0)),
            linewidth=1.2,
            elinewidth=0.8,
        )

    against = "" if metric in WITHOUT_REFERENCE else " to guided image"
    axes.set(xlabel=f"time of a call saved ({form.unit})", ylabel=metric + against)
    open_frame(axes)
    legend_outside(axes)
    return figure
