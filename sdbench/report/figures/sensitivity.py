"""What dropping guidance does, or another number format, by where in the loop it is."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.report.figures.style import PALETTE, new_figure, open_frame

COLOUR = PALETTE[4]
MEDIAN_COLOUR = PALETTE[1]
LABELS = {
    "single": "step {without}",
    "window": "first of {length} steps {without}",
    "last": "last steps {without}",
    "first": "first steps {without}",
    "estimate": "step without guidance, first-order estimate",
}
"""Of the horizontal axis, by kind."""
BY_LENGTH = ("last", "first")
"""Kinds whose length moves; of the others it is the start."""


def sensitivity_figure(
    curves: dict[str, pd.DataFrame], *, steps: int, switch: str | None = None
) -> Figure:
    """What dropping guidance does: a panel per metric, with 95 % intervals.

    A few images can decide a mean. So the median is drawn with it, where there is one, and the
    share of images that changed has a panel. Intervals of guidance have a beginning and a length;
    their means are shown as a map of both.

    Args:
        curves: by metric, each from `sdbench.analysis.sensitivity.sensitivity_curve`, of one kind.
        steps: of the loop.
        switch: what was switched instead of guidance, such as "precision:bf16".
    """
    without = "without guidance" if switch is None else f"in {switch.removeprefix('precision:')}"
    first = next(iter(curves.values()))
    kind = first["kind"].iloc[0]
    if kind == "interval":
        kept = "guided" if switch is None else f"not {without}"
        return _interval_maps(curves, kept)

    with_share = {metric: f"{metric}_changed" in curve for metric, curve in curves.items()}
    count = len(curves) + sum(with_share.values())
    figure = new_figure(8, 0.6 + 2.4 * count)
    panels = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    free = iter(panels)
    across = "length" if kind in BY_LENGTH else "start"
    for metric, curve in curves.items():
        axes = next(free)
        _draw_curve(axes, curve, metric, across, label="mean")
        if f"{metric}_median" in curve:
            _draw_curve(axes, curve, f"{metric}_median", across, label="median", dashed=True)
        _frame(axes, _meaning(metric))
        if switch is not None and metric not in WITHOUT_REFERENCE:
            _by_magnitude(axes, curve, metric)
        if with_share[metric]:
            axes = next(free)
            _draw_curve(axes, curve, f"{metric}_changed", across, label="share")
            _frame(axes, f"share of images changed,\nby {metric}")

    panels[0].legend(frameon=False, fontsize="small")
    label = LABELS[kind].format(length=first["length"].iloc[0], without=without)
    panels[-1].set(xlabel=f"{label} (of {steps})", xlim=(-0.02 * steps, 1.02 * steps))
    return figure


def _draw_curve(
    axes: Axes, curve: pd.DataFrame, name: str, across: str, *, label: str, dashed: bool = False
) -> None:
    """One column with its interval, of which too few prompts have none."""
    position = curve[across].astype(float)
    colour = MEDIAN_COLOUR if dashed else COLOUR
    lo = curve[f"{name}_lo"]
    if not lo.isna().all():
        axes.fill_between(
            position,
            lo,
            curve[f"{name}_hi"],
            color=colour,
            alpha=0.25,
            linewidth=0,
            label=f"95 % interval of the {label}",
        )

    axes.plot(
        position,
        curve[name],
        color=colour,
        linewidth=1.4,
        linestyle="--" if dashed else "-",
        marker="o",
        markersize=2.5,
        label=label,
    )


def _frame(axes: Axes, label: str) -> None:
    # Nothing lost: the image that every step guides.
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_ylabel(label.replace(", ", ",\n"))
    open_frame(axes)


def _by_magnitude(axes: Axes, curve: pd.DataFrame, metric: str) -> None:
    """A logarithmic axis: formats move images by very little, but for those that tip over."""
    names = [name for name in (metric, f"{metric}_median") if name in curve]
    shown = curve[names].to_numpy(float)
    if (shown > 0).all():
        axes.set_yscale("log")
        axes.set_ylim(bottom=shown.min() / 3)


def _interval_maps(curves: Mapping[str, pd.DataFrame], kept: str) -> Figure:
    figure = new_figure(0.6 + 4.2 * len(curves), 3.8)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (metric, curve) in zip(panels, curves.items(), strict=True):
        places = curve.astype({"start": int, "length": int})
        grid = places.pivot_table(metric, index="length", columns="start")
        drawn = axes.pcolormesh(grid.columns, grid.index, grid, shading="nearest", cmap="viridis")
        figure.colorbar(drawn, ax=axes, label=_meaning(metric))
        if kept == "guided":
            axes.set(xlabel="first guided step", ylabel="guided steps, none outside")
        else:
            axes.set(xlabel=f"first step {kept}", ylabel=f"steps {kept}")
        open_frame(axes)
    return figure


def _meaning(metric: str) -> str:
    if metric in WITHOUT_REFERENCE:
        return f"{metric} to prompt, change"
    return f"{metric} to guided image"
