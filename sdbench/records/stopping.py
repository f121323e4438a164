"""How many repeats a study asks for: a number, or as many as a precision takes.

Where repeats end as soon as intervals are narrow, they end early where the noise of the few happens
to be small, and intervals of the usual level would miss the truth too often. So it is asked at
fixed numbers of repeats only, and the intervals of such a study have a higher level.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

LOOKS = (6, 9, 13, 18, 24)
"""Repeats after which it is asked whether the intervals are narrow enough; the last is the most."""
NOMINAL = 0.95
"""Coverage that intervals state."""
CORRECTED = 0.965
"""Level of an interval that covers the truth as often as stated where repeats end by its width.

With one variant it covers in 94.7 to 96.5 % of runs whatever the noise, with more of them in 96 to
97 %: `tests/records/test_stopping.py` simulates it. Uncorrected, it may be 92.7 %.
"""
FURTHER = 0.5
"""Disturbed repeats that are measured again, as a share of the repeats asked for."""


def precision(repeats: object) -> float | None:
    """Half width of the intervals of savings to which a study measures, in points.

    Args:
        repeats: of a study: a number, or such as "until 2 points".

    Returns:
        None where repeats are a number.

    Raises:
        ValueError: a text that says something else.
    """
    if not isinstance(repeats, str):
        return None
    number = re.fullmatch(r"until (\d+\.?\d*|\.\d+) points?", " ".join(repeats.split()))
    if number is None or float(number[1]) == 0:
        raise ValueError(
            "repeats must be a whole number of at least 1, or a text such as 'until 2 points', "
            f"not {repeats!r}"
        )
    return float(number[1])


def looks(repeats: int | str) -> tuple[int, ...]:
    """Numbers of repeats after which a study may end; the last of them ends it."""
    return (repeats,) if isinstance(repeats, int) else LOOKS


def level(repeats: object) -> float:
    """Level of the intervals of times in a study with such repeats, for a coverage of 95 %."""
    return NOMINAL if precision(repeats) is None else CORRECTED


def further(repeats: int, batches: int = 1) -> int:
    """Disturbed repeats of a batch that are measured again, at most.

    There are none below as many rounds as give an interval: no time is known there.

    Args:
        repeats: that are asked for.
        batches: of the study; each of them has so many rounds.
    """
    return 0 if repeats * batches < LOOKS[0] else int(FURTHER * repeats)


def half_width(logs: ArrayLike, at: float) -> float:
    """Half the width of the interval of a saving, in points.

    Args:
        logs: logarithms of the ratios of a variant's times to the baseline's, one per repeat.
        at: level of the interval.

    Returns:
        Infinite below as many repeats as the first look takes.
    """
    logs = np.asarray(logs, dtype=float)
    count = len(logs)
    if count < LOOKS[0]:
        return np.inf
    reach = stdtrit(count - 1, (1 + at) / 2) * logs.std(ddof=1) / np.sqrt(count)
    return float(100 * np.exp(logs.mean()) * np.sinh(reach))


def widest(log_ratios: Mapping[str, ArrayLike], at: float) -> tuple[str, float]:
    """The variant whose saving is known worst, and its half width in points.

    Args:
        log_ratios: by variant, as `half_width` takes them; missing ones do not count.
        at: level of the intervals.

    Returns:
        No name and 0 where nothing is compared.
    """
    widths = {}
    for variant, values in log_ratios.items():
        logs = np.asarray(values, dtype=float)
        widths[variant] = half_width(logs[~np.isnan(logs)], at)
    if not widths:
        return "", 0.0
    name = max(widths, key=widths.__getitem__)
    return name, widths[name]
