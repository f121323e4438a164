"""Time saved against a metric, variant by variant."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.analysis.dominance import BEATEN, EFFICIENT, OPEN, UNTIMED
from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.analysis.stability import untimed
from sdbench.records.computed import SUMMARY
from sdbench.records.names import BASELINE, reference_of
from sdbench.report.figures.style import (
    BASELINE_COLOUR,
    decided,
    error_bars,
    new_figure,
    open_frame,
    say_first,
    say_undecided,
    variant_styles,
)

NAMED = {"marker": "o", "markersize": 5, "elinewidth": 1, "zorder": 2}
STYLES: dict[str, dict[str, Any]] = {
    EFFICIENT: NAMED | {"color": BASELINE_COLOUR},
    OPEN: {
        "marker": "o",
        "color": "0.35",
        "markerfacecolor": "white",
        "markersize": 5,
        "elinewidth": 0.8,
        "zorder": 1.5,
    },
    BEATEN: {"marker": "x", "color": "0.7", "markersize": 4, "elinewidth": 0.6, "zorder": 1},
    UNTIMED: {
        "marker": "D",
        "color": "0.35",
        "markerfacecolor": "white",
        "markersize": 5,
        "elinewidth": 0.8,
        "zorder": 1.5,
    },
}
"""Of a point, by what was shown of the variant."""
TOLD = {
    EFFICIENT: "efficient",
    OPEN: "not told apart",
    BEATEN: "beaten",
    UNTIMED: "not timed: predicted",
}


def frontier_figure(summary: pd.DataFrame, *, metric: str = "lpips") -> Figure:
    """Time that every variant saves against a metric, with 95 % intervals.

    Args:
        summary: from `sdbench.analysis.tables.summarise`, or from
            `sdbench.analysis.frontier.frontier`: then time is the loop's. What was shown to be
            efficient is filled, named and joined by a line, what was shown to be beaten is a cross,
            and what was not told apart is an open circle; both are numbered. What was not timed is
            an open diamond at its predicted saving. What is undecided is named, not drawn.
        metric: one of its columns.
    """
    marked = "verdict" in summary
    time = "denoise_saving" if marked else "saving"
    form = SUMMARY[time].format

    # The baseline is perfect in a metric that compares with it: infinite where higher is better.
    known = at_predicted(summary, time).dropna(subset=[time, metric])
    known = known[np.isfinite(known[metric])]
    points = decided(known, time)

    figure = new_figure(10, 6) if marked else new_figure(7, 4.5)
    say_first(figure, summary)
    axes = figure.subplots()
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    _draw_points(axes, points, time, metric)
    if marked:
        best = points[points["verdict"] == EFFICIENT]
        axes.plot(
            form.shown(best[time]), best[metric], color=BASELINE_COLOUR, linewidth=0.8, zorder=1
        )

    what = "of the denoising loop " if marked else ""
    axes.set(
        xlabel=f"time {what}saved against {BASELINE} ({form.unit})",
        ylabel=_axis_of(metric, summary),
    )
    axes.margins(0.12, 0.06)
    open_frame(axes)
    say_undecided(axes, known, time)
    _name_styles(axes, points)
    _label(figure, axes, points, time, metric)
    return figure


def at_predicted(summary: pd.DataFrame, time: str) -> pd.DataFrame:
    """A summary with predicted savings where nothing was timed.

    Args:
        summary: with the column `time` and its interval.
        time: a saving.

    Returns:
        The same rows, with the predicted saving instead of a measured one that is missing, and
        `untimed`, which says where.
    """
    rows = untimed(summary, time)
    ends = [time, f"{time}_lo", f"{time}_hi"]
    points = summary.assign(untimed=rows)
    for end in ends if rows.any() else []:
        points[end] = points[end].mask(rows, points[f"predicted_{end}"])
    return points


def _draw_points(axes: Axes, points: pd.DataFrame, time: str, metric: str) -> None:
    """Points with their intervals, in the style of what was shown of them."""
    form = SUMMARY[time].format
    styles = variant_styles(points["variant"])
    for index, variant in points["variant"].items():
        point = points.loc[[index]]
        axes.errorbar(
            form.shown(point[time]),
            point[metric],
            xerr=error_bars(point, time, form),
            yerr=error_bars(point, metric),
            **_point_style(point, styles[variant][0]),
        )


def _point_style(point: pd.DataFrame, colour: str) -> dict[str, Any]:
    if "verdict" in point:
        return STYLES[point["verdict"].item()]
    own = STYLES[UNTIMED] if point["untimed"].item() else NAMED
    return own | {"color": colour}


def _name_styles(axes: Axes, points: pd.DataFrame) -> None:
    """Say what filled points, open ones, crosses and diamonds are, above the axes."""
    shown = [EFFICIENT, OPEN, BEATEN] if "verdict" in points else []
    shown += [UNTIMED] * bool(points["untimed"].any())
    for verdict in shown:
        style = STYLES[verdict]
        marker = {name: value for name, value in style.items() if name != "elinewidth"}
        axes.plot([], [], linestyle="", label=TOLD[verdict], **marker)
    if shown:
        axes.legend(
            frameon=False,
            fontsize="small",
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(shown),
        )


def _axis_of(metric: str, summary: pd.DataFrame) -> str:
    if metric in WITHOUT_REFERENCE:
        return metric
    return f"{metric.upper()} to {reference_of(summary)}"


def _label(figure: Figure, axes: Axes, points: pd.DataFrame, time: str, metric: str) -> None:
    """Write its variant next to each point; what is not efficient gets a number in a key."""
    from adjustText import adjust_text  # imports pyplot, whose state it leaves alone

    names = points["variant"].astype(str)
    if "verdict" in points:
        names = _numbered(axes, names, points["verdict"] == EFFICIENT)

    # Labels are moved by their sizes in pixels, which are known once the figure was laid out.
    figure.draw_without_rendering()
    x = SUMMARY[time].format.shown(points[time])
    y = points[metric]
    texts = [axes.text(*place, fontsize=8) for place in zip(x, y, names, strict=True)]
    line = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.5}
    adjust_text(texts, x=x, y=y, ax=axes, iter_lim=500, expand=(1.2, 1.3), arrowprops=line)


def _numbered(
    axes: Axes, names: "pd.Series[str]", efficient: "pd.Series[bool]"
) -> "pd.Series[str]":
    """The names, with numbers instead of those that are not efficient, and a key to them drawn."""
    others = names[~efficient]
    numbers = pd.Series(
        [str(number + 1) for number in range(len(others))], index=others.index, dtype=str
    )
    key = "\n".join(f"{number}  {name}" for number, name in zip(numbers, others, strict=True))
    small: dict[str, Any] = {"fontsize": 8, "linespacing": 1.35, "color": "0.3"}
    axes.text(1.02, 1, key, transform=axes.transAxes, va="top", **small)
    return names.where(efficient, numbers)
