"""The history of a baseline: every figure that moved, from one acceptance to the next."""

import pandas as pd
from matplotlib.figure import Figure

from sdbench.analysis.regression import RATIO
from sdbench.report.figures import new_figure, variant_styles


def history_figure(history: pd.DataFrame) -> Figure:
    """The time ratios and every other figure that moved, one panel each, one line per variant.

    Args:
        history: from `sdbench.records.baselines.read_history`.
    """
    moved = history.groupby(["figure", "variant"])["value"].nunique().groupby("figure").max() > 1
    names = [RATIO, *(name for name in moved.index[moved] if name != RATIO)]
    figure = new_figure(8, 0.8 + 2.2 * len(names))
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    moments = list(history["accepted"].unique())
    for name, axes in zip(names, panels, strict=True):
        rows = history[history["figure"] == name]
        for variant, (colour, dash) in variant_styles(history["variant"]).items():
            values = (
                rows[rows["variant"] == variant].set_index("accepted")["value"].reindex(moments)
            )
            if values.notna().any():
                axes.plot(
                    range(len(moments)),
                    values,
                    color=colour,
                    linestyle=dash,
                    marker="o",
                    label=variant,
                )
        axes.set(ylabel=name)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    panels[-1].set_xticks(
        range(len(moments)), [moment[:10] for moment in moments], rotation=30, ha="right"
    )
    panels[-1].set_xlabel("accepted")
    return figure
