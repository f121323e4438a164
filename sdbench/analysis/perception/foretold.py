"""How well metrics foretell what people see: LPIPS, FLIP, and whether an image changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sdbench.analysis.perception.exact import exact_ends, noticed
from sdbench.analysis.perception.psychometric import Curve, foretelling, psychometric
from sdbench.records.metrics import SCALES

DISTANCES = ("lpips", "flip")
"""Metrics that a psychometric curve is drawn over."""
CHANGED = "changed"


def curves(tests: pd.DataFrame) -> dict[str, Curve]:
    """The psychometric curve over each distance that the study has.

    Args:
        tests: rows of the table `answers`, of variants, with `correct`.
    """
    found = {}
    for name in DISTANCES:
        known = tests.dropna(subset=[name])
        images = pd.factorize(pd.MultiIndex.from_frame(known[["variant", "prompt_id", "seed"]]))[0]
        groups = (known["person"], images)
        curve = psychometric(known[name], known["correct"].astype(bool), groups)
        if curve is not None:
            found[name] = curve
    return found


def foretold(tests: pd.DataFrame, drawn: Mapping[str, Curve]) -> pd.DataFrame:
    """One row per distance, and one for whether the image changed by its LPIPS.

    Args:
        tests: rows of the table `answers`, of variants, with `correct`.
        drawn: their curves, from `curves`.

    Returns:
        `metric`, `answers`, `foretells` (see `foretelling`); of a distance `threshold` with `_lo`
        and `_hi`, `slope` and `lapse` of its curve; of `changed` the share that noticed among
        changed images, `noticed_changed` with `_lo` and `_hi`, and `noticed_unchanged` likewise.
        No row for a metric that the study has not.
    """
    rows = []
    for name in DISTANCES:
        known = tests.dropna(subset=[name])
        if known.empty:
            continue
        row = {"metric": name, "answers": len(known)}
        row["foretells"] = foretelling(known[name], known["correct"].astype(bool))
        rows.append(row | (_of_curve(drawn[name]) if name in drawn else {}))

    known = tests.dropna(subset=["lpips"])
    if len(known):
        changed = known["lpips"] > SCALES["lpips"].changed
        correct = known["correct"].astype(bool)
        row = {"metric": CHANGED, "answers": len(known), "foretells": foretelling(changed, correct)}
        row |= _noticed("noticed_changed", correct[changed])
        rows.append(row | _noticed("noticed_unchanged", correct[~changed]))
    return pd.DataFrame(rows)


def _of_curve(curve: Curve) -> dict[str, Any]:
    ends = {"threshold": curve.threshold, "threshold_lo": curve.lo, "threshold_hi": curve.hi}
    return ends | {"slope": curve.slope, "lapse": curve.lapse}


def _noticed(name: str, correct: pd.Series[bool]) -> dict[str, float]:
    """The share that noticed, with the ends of its exact interval."""
    if correct.empty:
        return {f"{name}{end}": np.nan for end in ("", "_lo", "_hi")}
    lo, hi = exact_ends(correct.sum(), len(correct))
    shares = noticed(np.array([correct.mean(), lo, hi]))
    return {f"{name}{end}": float(s) for end, s in zip(("", "_lo", "_hi"), shares, strict=True)}
