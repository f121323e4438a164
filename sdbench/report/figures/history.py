"""The history of a baseline: every figure that moved, from one acceptance to the next."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.analysis.timing import RATIO
from sdbench.report.figures.style import legend_outside, new_figure, open_frame, variant_styles


def history_figure(history: pd.DataFrame) -> Figure:
    """The time ratios and every other figure that moved, a panel each, with a line per variant.

    Args:
        history: from `sdbench.records.baselines.read_history`.
    """
    moved = history.groupby(["figure", "variant"])["value"].nunique().groupby("figure").max() > 1
    # The time ratios come first and always: a baseline is accepted for them.
    names = [RATIO, *(name for name in moved.index[moved] if name != RATIO)]
    figure = new_figure(8, 0.8 + 2.2 * len(names))
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]

    moments = list(history["accepted"].unique())
    for name, axes in zip(names, panels, strict=True):
        _draw_lines(axes, history, name, moments)
        axes.set(ylabel=name)
        open_frame(axes)

    legend_outside(panels[0])
    days = [moment[:10] for moment in moments]
    panels[-1].set_xticks(range(len(moments)), days, rotation=30, ha="right")
    panels[-1].set_xlabel("accepted")
    return figure


def _draw_lines(axes: Axes, history: pd.DataFrame, name: str, moments: list[str]) -> None:
    """One line per variant that has the figure, in the colours that all panels share."""
    rows = history[history["figure"] == name]
    for variant, (colour, dash) in variant_styles(history["variant"]).items():
        values = rows[rows["variant"] == variant].set_index("accepted")["value"].reindex(moments)
        if values.notna().any():
            axes.plot(
                range(len(moments)),
                values,
                color=colour,
                linestyle=dash,
                marker="o",
                label=variant,
            )
