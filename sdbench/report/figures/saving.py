"""Time saved against the share of unguided steps."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.records.computed import SUMMARY
from sdbench.records.names import BASELINE
from sdbench.report.figures.style import (
    BASELINE_COLOUR,
    PALETTE,
    decided,
    error_bars,
    new_figure,
    open_frame,
    say_first,
    say_undecided,
)


def saving_figure(table: pd.DataFrame, *, published: str) -> Figure:
    """Time saved against the share of unguided steps: measured, predicted, ideal, and published.

    Args:
        table: from `sdbench.analysis.tables.summarise`, with `unguided_share`, and with what the
            paper says in percent.
        published: name of that column; NaN where the paper has no figure.
    """
    table = table.sort_values("unguided_share")

    # What the paper says is in percent, so everything is drawn in percent.
    form = SUMMARY["saving"].format
    share = form.shown(table["unguided_share"])

    figure = new_figure(7, 4.5)
    say_first(figure, table)
    axes = figure.subplots()
    _draw_expected(axes, share, table)

    measured = decided(table, "saving")
    axes.errorbar(
        form.shown(measured["unguided_share"]),
        form.shown(measured["saving"]),
        yerr=error_bars(measured, "saving", form),
        linewidth=0,
        label="measured, 95 % interval",
        color=BASELINE_COLOUR,
        marker="o",
        markersize=4,
        elinewidth=0.8,
    )
    axes.plot(
        share,
        table[published],
        color=PALETTE[3],
        marker="D",
        linewidth=0,
        label="the paper, another machine",
    )

    axes.set(
        xlabel=f"last steps without guidance ({form.unit})",
        ylabel=f"time of a call saved against {BASELINE} ({form.unit})",
    )
    open_frame(axes)
    say_undecided(axes, table, "saving")
    axes.legend(frameon=False, fontsize="small")
    return figure


def _draw_expected(axes: Axes, share: "pd.Series[float]", table: pd.DataFrame) -> None:
    """Savings if time were evaluations, and if steps took what they took on the whole."""
    for name, colour, dash, label in (
        ("ideal_saving", "0.6", ":", "ideal: as many evaluations less"),
        ("predicted_saving", PALETTE[4], "--", "predicted from the steps"),
    ):
        saving = SUMMARY[name].format.shown(table[name])
        axes.plot(share, saving, color=colour, linestyle=dash, label=label)
