"""The course of a study's variants over the steps."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.records.names import BASELINE
from sdbench.records.schema import columns
from sdbench.report.figures.style import (
    BASELINE_COLOUR,
    legend_outside,
    new_figure,
    open_frame,
    say_first,
    variant_styles,
)


def step_figure(profile: pd.DataFrame) -> Figure:
    """Time of every step per variant, and how far apart the baseline's two predictions are.

    Args:
        profile: from `sdbench.analysis.tables.step_profile`.
    """
    figure = new_figure(8, 5.5)
    say_first(figure, profile)
    time, cosine = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_times(time, profile)
    _draw_cosine(cosine, profile[profile["variant"] == BASELINE])

    # Outside of the axes: the lines of many steps leave no room among them.
    for axes in (time, cosine):
        legend_outside(axes)
        open_frame(axes)
    return figure


def _draw_times(axes: Axes, profile: pd.DataFrame) -> None:
    form = columns("steps")["latency_s"].format
    for variant, (colour, dash) in variant_styles(profile["variant"]).items():
        steps = profile[profile["variant"] == variant]
        if steps["latency_s"].isna().all():
            continue  # it was not timed
        axes.plot(
            steps["step"],
            form.shown(steps["latency_s"]),
            label=variant,
            color=colour,
            linestyle=dash,
            drawstyle="steps-mid",
            linewidth=1.2,
        )
    axes.set(ylabel=f"time of a step ({form.unit})", ylim=(0, None))


def _draw_cosine(axes: Axes, baseline: pd.DataFrame) -> None:
    axes.fill_between(
        baseline["step"],
        baseline["guidance_cosine_q25"],
        baseline["guidance_cosine_q75"],
        color=BASELINE_COLOUR,
        alpha=0.2,
        linewidth=0,
        label="quartiles",
    )
    axes.plot(
        baseline["step"],
        baseline["guidance_cosine"],
        color=BASELINE_COLOUR,
        label="median",
        linewidth=1.4,
    )
    axes.set(xlabel="step", ylabel=f"guidance cosine\nof {BASELINE}")
