"""What memory is held for at its peak."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sdbench.records.columns import Format
from sdbench.records.schema import columns
from sdbench.report.figures.style import PALETTE, legend_outside, new_figure, open_frame

SMALL = 0.01  # of the largest peak: a part below it is drawn with the rest


def ledger_figure(ledger: pd.DataFrame) -> Figure:
    """Memory at its peak, part by part: one bar per method.

    What is small everywhere is one part, "rest".

    Args:
        ledger: the table of that name.
    """
    form = columns("ledger")["at_peak_bytes"].format
    shown = ledger.assign(held=form.shown(ledger["at_peak_bytes"]))
    wide = shown.pivot_table("held", index="method", columns="part", sort=False, fill_value=0)

    # More parts than colours would not be told apart.
    largest = wide.max().nlargest(len(PALETTE))
    parts = largest[largest > SMALL * wide.sum(axis=1).max()].index
    wide["rest"] = wide.drop(columns=parts).sum(axis=1)

    figure = new_figure(8, 1.2 + 0.4 * len(wide))
    axes = figure.subplots()
    left = np.zeros(len(wide))
    for part, colour in zip([*parts, "rest"], [*PALETTE[: len(parts)], "0.6"], strict=True):
        axes.barh(wide.index, wide[part], left=left, color=colour, edgecolor="white", label=part)
        left = left + wide[part].to_numpy()

    _write_totals(axes, left, form)

    # The first method comes at the top, as in the table.
    axes.invert_yaxis()
    axes.set(xlabel=f"memory at the peak ({form.unit})", xlim=(0, 1.1 * left.max()))
    open_frame(axes)
    legend_outside(axes)
    return figure


def _write_totals(axes: Axes, totals: NDArray[np.float64], form: Format) -> None:
    """The sums, which are in the format's unit already, behind their bars."""
    for place, total in enumerate(totals):
        axes.annotate(
            format(total, form.spec),
            (total, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
