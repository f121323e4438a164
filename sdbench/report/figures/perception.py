"""What people saw: shares of right answers by variant, and the psychometric curve."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.analysis.perception.exact import exact_ends
from sdbench.analysis.perception.people import kept_answers
from sdbench.analysis.perception.perceive import Perceived
from sdbench.analysis.perception.psychometric import Curve, binned
from sdbench.records.computed import PERCEPTION
from sdbench.records.names import TEST
from sdbench.report.figures.style import (
    BASELINE_COLOUR,
    PALETTE,
    SMALL,
    WARNING,
    error_bars,
    new_figure,
    open_frame,
)
from sdbench.report.tables.perception import simulated_note

FORM = PERCEPTION["share"].format
LABELS = {"lpips": "LPIPS to the reference", "flip": "FLIP to the reference"}


def perception_figure(found: Perceived) -> Figure:
    """Shares of right answers, or of wins, each with its exact interval, next to chance.

    Grey points are people. Of a test of preference the shares are of wins.

    Args:
        found: by `sdbench.perceive`.
    """
    if found.mode == "preference":
        table = found.wins.assign(name=found.wins["variant"] + " over " + found.wins["against"])
        label = "fits the caption better"
    else:
        table = found.variants.assign(name=found.variants["variant"])
        label = "right answers"
    figure = new_figure(7, 1.4 + 0.45 * len(table))
    _say_simulated(figure, found)
    axes = figure.subplots()
    rows = np.arange(len(table))[::-1]
    axes.axvline(FORM.factor * 0.5, color="0.6", linestyle=":", linewidth=1)
    if len(found.by_person):
        _draw_people(axes, found.by_person, dict(zip(table["name"], rows, strict=True)))
    axes.errorbar(
        FORM.shown(table["share"]),
        rows,
        xerr=error_bars(table, "share", FORM),
        color=BASELINE_COLOUR,
        marker="o",
        markersize=4,
        linewidth=0,
        elinewidth=0.8,
    )
    axes.set_yticks(rows, table["name"])
    axes.set_xlabel(f"{label} ({FORM.unit}); dotted: chance")
    axes.set_xlim(-2, 102)
    axes.margins(y=0.15)
    open_frame(axes)
    return figure


def psychometric_figure(found: Perceived) -> Figure:
    """Right answers over each distance, with the curve and the distance that half notice.

    Points are groups of answers at alike distances, with exact intervals.

    Args:
        found: by `sdbench.perceive`, with a curve.
    """
    kept = kept_answers(found.answers)
    tests = kept[kept["kind"] == TEST]
    figure = new_figure(7, 0.4 + 2.8 * len(found.curves))
    _say_simulated(figure, found)
    panels = figure.subplots(len(found.curves), 1, squeeze=False)[:, 0]
    for axes, (metric, curve) in zip(panels, found.curves.items(), strict=True):
        known = tests.dropna(subset=[metric])
        _draw_curve(axes, curve, known[metric].to_numpy(float), known["correct"].to_numpy(bool))
        axes.set_xlabel(LABELS[metric])
        axes.set_ylabel(f"right answers ({FORM.unit})")
        open_frame(axes)
    return figure


def _draw_people(axes: Axes, people: pd.DataFrame, rows: dict[str, int]) -> None:
    """A pale point for each person who is not left out."""
    kept = people[people["kept"]]
    places = kept["variant"].map(rows).to_numpy(float) - 0.22
    axes.plot(FORM.shown(kept["share"]), places, ".", color="0.7", markersize=4)


def _draw_curve(axes: Axes, curve: Curve, distance: np.ndarray, correct: np.ndarray) -> None:
    points = binned(distance, correct)
    share = (points["right"] / points["trials"]).to_numpy()
    lo, hi = exact_ends(points["right"], points["trials"])
    axes.errorbar(
        points["distance"],
        FORM.factor * share,
        yerr=[FORM.factor * (share - lo), FORM.factor * (hi - share)],
        color=BASELINE_COLOUR,
        marker="o",
        markersize=4,
        linewidth=0,
        elinewidth=0.8,
    )
    above = distance[distance > 0]
    least = float(above.min())
    across = np.concatenate([np.linspace(0, least, 20), np.geomspace(least, distance.max(), 200)])
    axes.plot(across, FORM.factor * curve.right(across), color=PALETTE[4])
    axes.axhline(FORM.factor * 0.5, color="0.6", linestyle=":", linewidth=1)
    axes.axvline(curve.threshold, color=PALETTE[3], linewidth=1)
    axes.axvspan(curve.lo, min(curve.hi, distance.max()), color=PALETTE[3], alpha=0.15, linewidth=0)
    axes.annotate(
        "half notice",
        (curve.threshold, FORM.factor * 0.52),
        xytext=(3, 0),
        textcoords="offset points",
        fontsize=SMALL,
        color=PALETTE[3],
    )
    # Below the least distance the axis is even, so that 0 has its place.
    axes.set_xscale("symlog", linthresh=least)
    decades = np.arange(np.ceil(np.log10(least)), np.floor(np.log10(distance.max())) + 1)
    axes.set_xticks([0.0, *10.0**decades])
    axes.set_xlim(0, distance.max() * 1.1)


def _say_simulated(figure: Figure, found: Perceived) -> None:
    if note := simulated_note(found):
        figure.suptitle(note, fontsize=SMALL, color=WARNING)
