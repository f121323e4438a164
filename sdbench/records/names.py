"""The names of variants as they stand in the tables: what every stage may ask of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "cfg"
"""The variant that all others are compared with: every step guided."""
PLANNED = "plan"
"""The variant that runs a schedule which was searched for."""
BAD_ANSWERS = ("black", "noise", "other prompt")
"""What a metric of quality must put below the baseline: a black frame, random pixels, the image of
another prompt."""
ANSWERS = (*BAD_ANSWERS, "other seed", "again")
"""With what is as good as the baseline: another seed of the same prompt, the same call again."""
STILL = "still"
"""Of a video also: its first frame all along, which is bad as well."""

TRIAL_MODES = ("reference", "abx", "preference")
"""What a blind test asks: which of two images the reference is, which of them X is, or which fits
the caption better."""
TEST, CLEAR, IDENTICAL = "test", "clear", "identical"
TRIAL_KINDS = (TEST, CLEAR, IDENTICAL)
"""Of a blind test's trials: a variant, and two kinds of catch trials: images that everybody tells
apart, and twice the same image."""


def reference_of(table: pd.DataFrame) -> str:
    """The variant that images are compared with, by a table that names it where it is another."""
    return str(table["reference"].iloc[0]) if "reference" in table else BASELINE


def split_name(name: str) -> tuple[str, str | None]:
    """The kind and the argument of a variant's name.

    `last:20%` is ("last", "20%"), and `cfg` is ("cfg", None). Of a combination such as
    `last:20%+lora` the argument also holds what stands behind the plus sign.
    """
    kind, colon, argument = name.partition(":")
    return kind, argument if colon else None


SCALE = "scale:"
"""Beginning of the name of a constant scale: the control that a study tunes for itself."""
