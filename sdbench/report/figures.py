"""Figures from frames: the course over the steps, a grid of images, and saving against distance.

Every function returns a `matplotlib.figure.Figure` to save or show; none touches pyplot's global state.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.records.files import inside, read_image
from sdbench.records.names import BASELINE
from sdbench.records.store import Results

# Okabe and Ito's palette, told apart with any colour vision; black is the baseline's.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7")
BASELINE_COLOUR = "#000000"
DASHES = ("-", "--", ":", "-.")


def step_figure(profile: pd.DataFrame) -> Figure:
    """Time of every step per variant, and how far apart the two predictions of the baseline are.

    Args:
        profile: from `sdbench.analysis.tables.step_profile`.
    """
    figure = new_figure(8, 5.5)
    time, cosine = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for variant, (colour, dash) in variant_styles(profile["variant"]).items():
        steps = profile[profile["variant"] == variant]
        style = {"color": colour, "linestyle": dash, "drawstyle": "steps-mid", "linewidth": 1.2}
        time.plot(steps["step"], 1e3 * steps["latency_s"], label=variant, **style)
    time.set(ylabel="time of a step (ms)", ylim=(0, None))
    time.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    baseline = profile[profile["variant"] == BASELINE]
    quartiles = baseline["guidance_cosine_q25"], baseline["guidance_cosine_q75"]
    cosine.fill_between(
        baseline["step"],
        *quartiles,
        color=BASELINE_COLOUR,
        alpha=0.2,
        linewidth=0,
        label="quartiles",
    )
    cosine.plot(
        baseline["step"],
        baseline["guidance_cosine"],
        color=BASELINE_COLOUR,
        label="median",
        linewidth=1.4,
    )
    cosine.set(xlabel="step", ylabel=f"guidance cosine\nof {BASELINE}")
    cosine.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (time, cosine):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def image_grid(results: Results, *, pairs: Sequence[tuple[str, int]]) -> Figure:
    """The images of some (prompt, seed) pairs under every variant: one row per pair, one column per variant.

    Args:
        results: a study whose images are stored; one that is missing leaves its place empty.
        pairs: `prompt_id` and `seed` of every row.

    Raises:
        ValueError: a pair is not in the study, or there are none.
    """
    images = results.images.drop_duplicates(["variant", "prompt_id", "seed"])
    prompts = images.drop_duplicates(["prompt_id", "seed"]).set_index(["prompt_id", "seed"])[
        "prompt"
    ]
    unknown = [pair for pair in pairs if pair not in prompts.index]
    if unknown or not pairs:
        raise ValueError(
            f"no images of {unknown or 'no pairs'}; there are {', '.join(map(str, prompts.index))}"
        )
    paths = images.set_index(["variant", "prompt_id", "seed"])["path"]
    variants = list(variant_styles(results.runs["variant"]))
    figure = new_figure(1.6 + 1.3 * len(variants), 0.3 + 1.3 * len(pairs))
    grid = figure.subplots(len(pairs), len(variants), squeeze=False)
    for line, pair in zip(grid, pairs, strict=True):
        for axes, variant in zip(line, variants, strict=True):
            _show_image(axes, results.folder, paths.get((variant, *pair)))
        label = f"{textwrap.fill(prompts[pair], 22)}\nseed {pair[1]}"
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)
    for axes, variant in zip(grid[0], variants, strict=True):
        axes.set_title(textwrap.fill(variant, 16), fontsize=8)
    return figure


def frontier_figure(summary: pd.DataFrame, *, metric: str = "lpips") -> Figure:
    """Time that every variant saves against a metric, with 95 % intervals.

    Args:
        summary: from `sdbench.analysis.tables.summarise`, or from `sdbench.analysis.frontier.frontier`: then time is
            the loop's, what is efficient is named and joined by a line, and the rest is grey and numbered.
        metric: one of its columns.
    """
    marked = "efficient" in summary
    time = "denoise_saving" if marked else "saving"
    figure = new_figure(10, 6) if marked else new_figure(7, 4.5)
    axes = figure.subplots()
    points = summary.dropna(subset=[time, metric])
    points = points[np.isfinite(points[metric])]
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    styles = variant_styles(points["variant"])
    for index, variant in points["variant"].items():
        point = points.loc[[index]]
        grey = marked and not point["efficient"].item()
        axes.errorbar(
            100 * point[time],
            point[metric],
            xerr=_bars(point, time, 100),
            yerr=_bars(point, metric, 1),
            color="0.7" if grey else BASELINE_COLOUR if marked else styles[variant][0],
            marker="o",
            markersize=4 if grey else 5,
            elinewidth=0.6 if grey else 1,
            zorder=1 if grey else 2,
        )
    if marked:
        best = points[points["efficient"]]
        axes.plot(100 * best[time], best[metric], color=BASELINE_COLOUR, linewidth=0.8, zorder=1)
    what = "of the denoising loop " if marked else ""
    axes.set(xlabel=f"time {what}saved against {BASELINE} (%)", ylabel=_axis_of(metric))
    axes.margins(0.12, 0.06)
    axes.spines[["top", "right"]].set_visible(False)
    _label(figure, axes, points, time, metric)
    return figure


def _axis_of(metric: str) -> str:
    if metric in WITHOUT_REFERENCE:
        return metric
    return f"{metric.upper()} to {BASELINE}"


def sensitivity_figure(curves: dict[str, pd.DataFrame], *, steps: int) -> Figure:
    """What dropping guidance does, by where it is dropped: one panel per metric, with 95 % intervals.

    Intervals of guidance have a beginning and a length; their means are shown as a map of both.

    Args:
        curves: by metric, each from `sdbench.analysis.sensitivity.sensitivity_curve`, of one kind.
        steps: of the loop.
    """
    if next(iter(curves.values()))["kind"].iloc[0] == "interval":
        return _interval_maps(curves)
    figure = new_figure(8, 0.6 + 2.4 * len(curves))
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    first = next(iter(curves.values()))
    kind = first["kind"].iloc[0]
    across = "length" if kind in ("last", "first") else "start"
    labels = {
        "single": "step without guidance",
        "window": f"first of {first['length'].iloc[0]} steps without guidance",
        "last": "last steps without guidance",
        "first": "first steps without guidance",
    }
    for axes, (metric, curve) in zip(panels, curves.items(), strict=True):
        position = curve[across].astype(float)
        if not curve[f"{metric}_lo"].isna().all():
            ends = (curve[f"{metric}_lo"], curve[f"{metric}_hi"])
            axes.fill_between(
                position, *ends, color=PALETTE[4], alpha=0.25, linewidth=0, label="95 % interval"
            )
        axes.plot(
            position,
            curve[metric],
            color=PALETTE[4],
            linewidth=1.4,
            marker="o",
            markersize=2.5,
            label="mean",
        )
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.set_ylabel(_meaning(metric).replace(", ", ",\n"))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize="small")
    panels[-1].set(xlabel=f"{labels[kind]} (of {steps})", xlim=(-0.02 * steps, 1.02 * steps))
    return figure


def plan_figure(table: pd.DataFrame, metric: str) -> Figure:
    """Time saved against a metric for planned schedules and their controls, with 95 % intervals.

    Args:
        table: from `sdbench.analysis.frontier.plan_table`.
        metric: the one that it was made for.
    """
    figure = new_figure(7.5, 4.5)
    axes = figure.subplots()
    kinds = table["variant"].str.split(":").str[0]
    for index, (kind, part) in enumerate(table.groupby(kinds, sort=False)):
        part = part.sort_values("saving")
        colour = BASELINE_COLOUR if kind == "plan" else PALETTE[(index - 1) % len(PALETTE)]
        dash = DASHES[max(index - 1, 0) // len(PALETTE) % len(DASHES)]
        axes.errorbar(
            100 * part["saving"],
            part[metric],
            xerr=_bars(part, "saving", 100),
            yerr=_bars(part, metric, 1),
            label=kind,
            color=colour,
            marker="o",
            markersize=4,
            linestyle=dash,
            linewidth=1.2,
            elinewidth=0.8,
        )
    against = "" if metric in WITHOUT_REFERENCE else " to guided image"
    axes.set(xlabel="time of a call saved (%)", ylabel=metric + against)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def curves_figure(
    table: pd.DataFrame,
    across: str,
    panels: Mapping[str, str],
    *,
    label: str,
    by: str | None = None,
    log: bool = False,
) -> Figure:
    """Columns of a table against one of them, one panel each, with 95 % intervals where the table has them.

    Args:
        table: with `_lo` and `_hi` behind the columns that have intervals.
        across: the column of the horizontal axis.
        panels: columns to draw, with the text of their axes.
        label: text of the horizontal axis.
        by: column whose values have a line each.
        log: the horizontal axis doubles.
    """
    figure = new_figure(7, 0.6 + 2.2 * len(panels))
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    groups = [("", table)] if by is None else list(table.groupby(by, sort=False))
    for axes, (column, text) in zip(rows, panels.items(), strict=True):
        for index, (name, part) in enumerate(groups):
            bars = _bars(part, column, 1) if f"{column}_lo" in part else None
            style = {
                "color": BASELINE_COLOUR if index == 0 else PALETTE[(index - 1) % len(PALETTE)],
                "label": name,
            }
            axes.errorbar(
                part[across],
                part[column],
                yerr=bars,
                marker="o",
                markersize=4,
                elinewidth=0.8,
                **style,
            )
        axes.set_ylabel(text)
        axes.margins(y=0.12)
        axes.set_ylim(bottom=min(0.0, axes.dataLim.y0))
        axes.spines[["top", "right"]].set_visible(False)
    if log:
        rows[-1].set_xscale("log", base=2)
        rows[-1].xaxis.set_major_formatter("{x:g}")
    rows[-1].set_xlabel(label)
    if by is not None:
        rows[0].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def saving_figure(table: pd.DataFrame, *, published: str) -> Figure:
    """Time saved against the share of unguided steps: measured, predicted, ideal, and what a paper says.

    Args:
        table: from `sdbench.analysis.tables.summarise`, with `unguided_share`, and with what the paper says in percent.
        published: name of that column; NaN where the paper has no figure.
    """
    table = table.sort_values("unguided_share")
    share = 100 * table["unguided_share"]
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    axes.plot(
        share,
        100 * table["ideal_saving"],
        color="0.6",
        linestyle=":",
        label="ideal: as many evaluations less",
    )
    axes.plot(
        share,
        100 * table["predicted_saving"],
        color=PALETTE[4],
        linestyle="--",
        label="predicted from the steps",
    )
    bars = _bars(table, "saving", 100)
    style: dict[str, Any] = {
        "color": BASELINE_COLOUR,
        "marker": "o",
        "markersize": 4,
        "elinewidth": 0.8,
    }
    axes.errorbar(
        share,
        100 * table["saving"],
        yerr=bars,
        linewidth=0,
        label="measured, 95 % interval",
        **style,
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
        xlabel="last steps without guidance (%)",
        ylabel=f"time of a call saved against {BASELINE} (%)",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return figure


def ledger_figure(ledger: pd.DataFrame) -> Figure:
    """Memory at its peak, part by part: one bar per method; what is small everywhere is one part, "rest".

    Args:
        ledger: the table of that name.
    """
    wide = (
        ledger.pivot_table(
            "at_peak_bytes", index="method", columns="part", sort=False, fill_value=0
        )
        / 1e9
    )
    largest = wide.max().nlargest(len(PALETTE))
    parts = largest[largest > 0.01 * wide.sum(axis=1).max()].index
    wide["rest"] = wide.drop(columns=parts).sum(axis=1)
    figure = new_figure(8, 1.2 + 0.4 * len(wide))
    axes = figure.subplots()
    left = np.zeros(len(wide))
    for part, colour in zip([*parts, "rest"], [*PALETTE[: len(parts)], "0.6"], strict=True):
        axes.barh(wide.index, wide[part], left=left, color=colour, edgecolor="white", label=part)
        left = left + wide[part].to_numpy()
    for place, total in enumerate(left):
        axes.annotate(
            f"{total:.3g}",
            (total, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.invert_yaxis()
    axes.set(xlabel="memory at the peak (GB)", xlim=(0, 1.1 * left.max()))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _interval_maps(curves: dict[str, pd.DataFrame]) -> Figure:
    figure = new_figure(0.6 + 4.2 * len(curves), 3.8)
    for axes, (metric, curve) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        grid = curve.astype({"start": int, "length": int}).pivot_table(
            metric, index="length", columns="start"
        )
        drawn = axes.pcolormesh(grid.columns, grid.index, grid, shading="nearest", cmap="viridis")
        figure.colorbar(drawn, ax=axes, label=_meaning(metric))
        axes.set(xlabel="first guided step", ylabel="guided steps, none outside")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _meaning(metric: str) -> str:
    return (
        f"{metric} to prompt, change"
        if metric in WITHOUT_REFERENCE
        else f"{metric} to guided image"
    )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in the one style; width and height in inches."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def variant_styles(variants: "pd.Series[str]") -> dict[str, tuple[str, str]]:
    """Colour and dash of every variant, the baseline first and black; each round of colours has its own dash."""
    names = list(variants.unique())
    others = [name for name in names if name != BASELINE]
    styles = {BASELINE: (BASELINE_COLOUR, DASHES[0])} if BASELINE in names else {}
    for index, name in enumerate(others):
        styles[name] = (PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)])
    return styles


def _show_image(axes: Axes, folder: Path, path: str | None) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="0.8", linewidth=0.5)
    if path is None or pd.isna(path):
        axes.set_box_aspect(1)
        axes.text(
            0.5,
            0.5,
            "no image",
            ha="center",
            va="center",
            fontsize=7,
            color="0.5",
            transform=axes.transAxes,
        )
    else:
        axes.imshow(
            np.asarray(read_image(inside(folder, path))) / np.float32(255), interpolation="nearest"
        )


def _bars(rows: pd.DataFrame, name: str, factor: float) -> "list[pd.Series[float]]":
    """Lengths of error bars below and above; none is drawn where the interval is missing."""
    estimate, lo, hi = (factor * rows[column] for column in (name, f"{name}_lo", f"{name}_hi"))
    return [estimate - lo, hi - estimate]


def _label(figure: Figure, axes: Axes, points: pd.DataFrame, time: str, metric: str) -> None:
    """Write its variant beside each point; where some are marked as efficient, the others get numbers and a key."""
    from adjustText import adjust_text  # imports pyplot, whose state it leaves alone

    names = points["variant"].astype(str)
    if "efficient" in points:
        others = names[~points["efficient"]]
        numbers = pd.Series(
            [str(number + 1) for number in range(len(others))], index=others.index, dtype=str
        )
        key = "\n".join(f"{number}  {name}" for number, name in zip(numbers, others, strict=True))
        axes.text(
            1.02,
            1,
            key,
            transform=axes.transAxes,
            va="top",
            fontsize=8,
            linespacing=1.35,
            color="0.3",
        )
        names = names.where(points["efficient"], numbers)
    figure.draw_without_rendering()
    x, y = 100 * points[time], points[metric]
    texts = [axes.text(*place, fontsize=8) for place in zip(x, y, names, strict=True)]
    line = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.5}
    adjust_text(texts, x=x, y=y, ax=axes, iter_lim=500, expand=(1.2, 1.3), arrowprops=line)
