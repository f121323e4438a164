"""Where the time of a step goes, and the roof above every kind of layer."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.records.computed import MODULE
from sdbench.report.figures.style import BASELINE_COLOUR, PALETTE, SMALL, new_figure, open_frame

BAR = 0.38  # height of one of two bars


def module_figure(table: pd.DataFrame, *, peak_flop_s: float, peak_copy_s: float) -> Figure:
    """Time by kind of layer in both kinds of steps; and FLOPs per second over FLOPs per byte.

    Args:
        table: from `sdbench.analysis.modules.module_table`, by kind.
        peak_flop_s: of the device.
        peak_copy_s: of the device, in bytes per second.
    """
    figure = new_figure(10, 4.2)
    times, roof = figure.subplots(1, 2)
    _draw_times(times, table)
    _draw_roof(figure, roof, table[table["flop"] > 0], peak_flop_s, peak_copy_s)
    return figure


def _draw_times(axes: Axes, table: pd.DataFrame) -> None:
    """Two bars for each kind, the longest above."""
    places = np.arange(len(table))
    form = MODULE["guided_s"].format
    for name, shift, colour, label in (
        ("guided_s", -BAR / 2, BASELINE_COLOUR, "guided step"),
        ("unguided_s", BAR / 2, PALETTE[1], "unguided step"),
    ):
        axes.barh(places + shift, form.shown(table[name]), BAR, color=colour, label=label)
    axes.set_yticks(places, table["kind"])
    axes.invert_yaxis()
    axes.set_xlabel(f"time ({form.unit})")
    open_frame(axes)
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def _draw_roof(
    figure: Figure, axes: Axes, table: pd.DataFrame, peak_flop_s: float, peak_copy_s: float
) -> None:
    """Each kind below what the device can do at most for as many FLOPs per byte."""
    ridge = peak_flop_s / peak_copy_s
    ends = (min(table["intensity"].min(), ridge) / 2, max(table["intensity"].max(), ridge) * 2)
    span = np.geomspace(*ends, 100)
    roof = np.minimum(peak_flop_s, span * peak_copy_s) / 1e9
    axes.plot(span, roof, color="0.4", label="roof: a copy, a matrix product")

    colours = [PALETTE[place % len(PALETTE)] for place in range(len(table))]
    axes.scatter(table["intensity"], table["flop_s"] / 1e9, c=colours, s=30, zorder=3)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="work for each byte moved (FLOP/byte)",
        ylabel="work done (GFLOP/s)",
    )
    open_frame(axes)
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    _name_points(figure, axes, table)


def _name_points(figure: Figure, axes: Axes, table: pd.DataFrame) -> None:
    """Write its kind next to each point, none over another."""
    from adjustText import adjust_text  # imports pyplot, whose state it leaves alone

    # Labels are moved by their sizes in pixels, which are known once the figure was laid out.
    figure.draw_without_rendering()
    places = table[["intensity", "flop_s"]].dropna()
    places = places.assign(flop_s=places["flop_s"] / 1e9)
    names = table.loc[places.index, "kind"]
    texts = [
        axes.text(x, y, name, fontsize=SMALL)
        for (x, y), name in zip(places.to_numpy(), names, strict=True)
    ]
    line = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.5}
    x, y = places.to_numpy().T
    adjust_text(texts, x=x, y=y, ax=axes, iter_lim=500, expand=(1.2, 1.5), arrowprops=line)
