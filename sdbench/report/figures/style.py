"""The one style of all figures: size, colours, dashes, error bars, legends and frames."""

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdbench.analysis.stability import undecided
from sdbench.records.columns import Format
from sdbench.records.names import BASELINE
from sdbench.report.disturbance import disturbance_note

# Okabe and Ito's palette, told apart with any colour vision; black is the baseline's.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7")
BASELINE_COLOUR = "#000000"
DASHES = ("-", "--", ":", "-.")
SMALL = 8
"""Size of what is written into a figure, in points."""
PER_INCH = 16  # letters of that size in an inch
WARNING = PALETTE[3]
NUMBER = Format("")
"""What is drawn as it is stored, without a unit."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in the one style; width and height in inches."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def say_first(figure: Figure, table: pd.DataFrame) -> None:
    """Head a figure with what disturbed the run that its table is of; a calm run adds nothing."""
    if note := disturbance_note(table):
        width = int(PER_INCH * figure.get_figwidth())
        figure.suptitle(textwrap.fill(note, width), fontsize=SMALL, color=WARNING)


def decided(table: pd.DataFrame, saving: str) -> pd.DataFrame:
    """The rows whose saving is not undecided; only these set the axes of a figure."""
    return table[~undecided(table, saving)]


def say_undecided(axes: Axes, table: pd.DataFrame, saving: str) -> None:
    """Name below the axes what is not drawn, as its saving is undecided."""
    names = table.loc[undecided(table, saving), "variant"].unique()
    if len(names):
        text = textwrap.fill(f"undecided, not drawn: {', '.join(names)}", 90)
        axes.annotate(
            text,
            (0, 0),
            xycoords="axes fraction",
            xytext=(0, -38),
            textcoords="offset points",
            va="top",
            fontsize=SMALL,
            color=WARNING,
        )


def open_frame(axes: Axes) -> None:
    """Leave the sides above and to the right of the data open."""
    axes.spines[["top", "right"]].set_visible(False)


def legend_outside(axes: Axes) -> None:
    """Name the lines to the right of the axes, where they hide nothing."""
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def variant_styles(variants: "pd.Series[str]") -> dict[str, tuple[str, str]]:
    """Colour and dash of every variant; the baseline is first and black.

    Each round of colours has its own dash.
    """
    names = list(variants.unique())
    others = [name for name in names if name != BASELINE]
    styles = {BASELINE: (BASELINE_COLOUR, DASHES[0])} if BASELINE in names else {}
    for place, name in enumerate(others):
        styles[name] = (colour_at(place), dash_at(place))
    return styles


def colour_at(place: int) -> str:
    """The colour of a place in a row of lines; the palette begins again at its end."""
    return PALETTE[place % len(PALETTE)]


def dash_at(place: int, dashes: Sequence[str] = DASHES) -> str:
    """The dash of a place in a row of lines: another one for each round of colours."""
    return dashes[place // len(PALETTE) % len(dashes)]


def error_bars(rows: pd.DataFrame, name: str, form: Format = NUMBER) -> "list[pd.Series[float]]":
    """Lengths of error bars below and above, in the format's unit.

    None is drawn where the interval is missing.
    """
    estimate, lo, hi = (form.shown(rows[column]) for column in (name, f"{name}_lo", f"{name}_hi"))
    return [estimate - lo, hi - estimate]
