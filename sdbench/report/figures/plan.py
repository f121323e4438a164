"""Plans and their controls, in time and a metric."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.records.computed import SUMMARY
from sdbench.records.names import PLANNED, split_name
from sdbench.report.figures.style import (
    BASELINE_COLOUR,
    colour_at,
    dash_at,
    decided,
    error_bars,
    legend_outside,
    new_figure,
    open_frame,
    say_first,
    say_undecided,
)


def plan_figure(table: pd.DataFrame, metric: str) -> Figure:
    """Time saved against a metric for planned schedules and their controls, with 95 % intervals.

    Of a metric that a few images decide, the median and the share of changed images have a panel
    each below the mean.

    Args:
        table: from `sdbench.analysis.plans.plan_table`.
        metric: the one that it was made for.
    """
    against = "" if metric in WITHOUT_REFERENCE else " to guided image"
    labels = {metric: metric + against}
    if f"{metric}_changed" in table:
        labels = {
            metric: f"{metric}{against},\nmean",
            f"{metric}_median": "median",
            f"{metric}_changed": "share of images changed",
        }

    figure = new_figure(7.5, 1.5 + 3 * len(labels))
    say_first(figure, table)
    panels = figure.subplots(len(labels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        _draw(axes, table, name)
        axes.set_ylabel(label)
        open_frame(axes)
    panels[-1].set_xlabel(f"time of a call saved ({SUMMARY['saving'].format.unit})")
    legend_outside(panels[0])
    say_undecided(panels[-1], table, "saving")
    return figure


def _draw(axes: Axes, table: pd.DataFrame, name: str) -> None:
    """One column against the time saved, a line per kind of variant."""
    form = SUMMARY["saving"].format

    # One line per kind of variant, joined in the order of time saved; the plan's comes first.
    kinds = table["variant"].map(lambda name: split_name(name)[0])

    for index, (kind, variants) in enumerate(table.groupby(kinds, sort=False)):
        points = decided(variants, "saving").sort_values("saving")
        axes.errorbar(
            form.shown(points["saving"]),
            points[name],
            xerr=error_bars(points, "saving", form),
            yerr=error_bars(points, name),
            label=kind,
            color=BASELINE_COLOUR if kind == PLANNED else colour_at(index - 1),
            marker="o",
            markersize=4,
            linestyle=dash_at(max(index - 1, 0)),
            linewidth=1.2,
            elinewidth=0.8,
        )
