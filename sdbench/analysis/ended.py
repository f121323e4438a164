"""Why a study's repeats ended, where they were to go on until its intervals are narrow."""

import pandas as pd

from sdbench.records.stopping import LOOKS, precision


def ended(repeats: object, summary: pd.DataFrame) -> str:
    """How many repeats ran and why no more, in one line.

    Args:
        repeats: of the study: a number, or such as "until 2 points".
        summary: as `summarise` returns it, with its intervals of the study's level.

    Returns:
        Nothing where repeats are a number, or nothing was timed.
    """
    points = precision(repeats)
    widths = 50 * (summary["saving_hi"] - summary["saving_lo"])
    if points is None or widths.isna().all():
        return ""

    variant = summary["variant"].iloc[int(widths.fillna(0).argmax())]
    widest = f"{variant} is known to ±{widths.max():.1f} points"
    ran = int(summary["repeats"].max())
    if widths.max() <= points:
        return f"{ran} repeats: the saving of {widest}, and every other one at least as well"
    asked = f"±{points:g} were asked for"
    if ran >= LOOKS[-1]:
        return f"{ran} repeats, which are the most: the saving of {widest}, and {asked}"
    return f"{ran} repeats so far: the saving of {widest}, and {asked}"
