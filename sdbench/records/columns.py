"""A column, how its numbers are shown, and the columns that several tables have.

Which tables there are is in `stored.py` (on disk) and `computed.py` (what the analysis returns).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Format:
    """How people read a number: `factor` times what is stored, written with `spec`, in `unit`."""

    spec: str
    unit: str = ""
    factor: float = 1

    def text(self, value: float) -> str:
        """The number without its unit."""
        return format(self.factor * value, self.spec)

    def shown(self, values: "pd.Series[float]") -> "pd.Series[float]":
        """The numbers of a column in the unit, for a figure."""
        return self.factor * values


PLAIN = Format(".4g")
SECONDS = Format("z.2f", "s")
MILLISECONDS = Format("z.0f", "ms", 1e3)
PERCENT = Format("z.1f", "%", 100)
MEGABYTES = Format(".0f", "MB", 1e-6)
GIGABYTES = Format(".3g", "GB", 1e-9)
TERAFLOP = Format(".3g", "TFLOP", 1e-12)


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        dtype: `string`, `Int64`, `float64` or `boolean`.
        unit: of what is stored, in SI; `1` for a pure number, empty for text and flags.
        meaning: in a line.
        nullable: whether a value may be missing.
        minimum: the least value that is allowed.
        choices: the texts that are allowed; any when empty.
        label: its heading in a table for people; the column's name when empty.
        format: how its numbers are shown.
    """

    dtype: str
    unit: str
    meaning: str
    nullable: bool = False
    minimum: float | None = None
    choices: tuple[str, ...] = ()
    label: str = ""
    format: Format = PLAIN

    @property
    def heading(self) -> str:
        """The label with the unit in which the column is shown."""
        return f"{self.label} {self.format.unit}".rstrip()


def text(meaning: str, *, nullable: bool = False, choices: Sequence[str] = ()) -> Column:
    """A column of text."""
    return Column("string", "", meaning, nullable, choices=tuple(choices))


def flag(meaning: str, *, nullable: bool = False) -> Column:
    """A column of yes and no."""
    return Column("boolean", "", meaning, nullable)


def count(unit: str, meaning: str, *, nullable: bool = False, form: Format = PLAIN) -> Column:
    """A column of whole numbers from 0."""
    return Column("Int64", unit, meaning, nullable, minimum=0, format=form)


def seconds(meaning: str, *, nullable: bool = False, form: Format = SECONDS) -> Column:
    """A column of durations."""
    return Column("float64", "s", meaning, nullable, minimum=0, format=form)


def size(meaning: str, *, nullable: bool = False, form: Format = MEGABYTES) -> Column:
    """A column of amounts of memory."""
    return count("bytes", meaning, nullable=nullable, form=form)


def real(
    unit: str,
    meaning: str,
    *,
    nullable: bool = False,
    minimum: float | None = None,
    label: str = "",
    form: Format = PLAIN,
) -> Column:
    """A column of real numbers."""
    return Column("float64", unit, meaning, nullable, minimum, label=label, format=form)


METRICS = {
    "lpips": real("1", "LPIPS to the reference, 0 is identical", nullable=True),
    "flip": real("1", "FLIP to the reference, 0 is identical", nullable=True),
    "ssim": real("1", "structural similarity to the reference, 1 is identical", nullable=True),
    "psnr": real(
        "dB", "peak signal-to-noise ratio to the reference; missing if identical", nullable=True
    ),
    "alignment": real("1", "share of the caption's attributes that the image shows", nullable=True),
    "clip_score": real("1", "CLIPScore of image and prompt, 0 to 100", nullable=True),
}
"""Of an image; of a video the mean over its frames that have a value."""
WORST = "_worst"
"""Ends the name of a column with a metric's value for the worst frame of a video."""
FLICKER = "flicker"
VIDEO = {
    **{
        f"{name}{WORST}": real(
            column.unit, f"the same of a video's worst frame: {column.meaning}", nullable=True
        )
        for name, column in METRICS.items()
    },
    FLICKER: real(
        "1", "mean LPIPS between neighbouring frames of a video", nullable=True, minimum=0
    ),
}
"""Of a video, next to its metrics, which are means over its frames; of images there are none."""
PAIR = {
    "prompt_id": text("identifier of the prompt within the study"),
    "prompt": text("text of the prompt"),
    "seed": Column("Int64", "1", "seed of the image's own noise generator"),
}
"""What an image is made of: a prompt and the seed of its noise."""
BRANCH = {
    "kind": text("how the unguided steps were chosen; `baseline` has none"),
    "start": count(
        "1",
        "first step of the run that the kind moves; missing where there is no such run",
        nullable=True,
    ),
    "length": count("steps", "length of that run", nullable=True),
    "mask": text("one letter per step, 1 where it is guided"),
}
"""Which steps of a branch are guided, and how they were chosen."""
