"""What the records say of how undisturbed a run was.

How it is watched is in `sdbench.instruments.disturbance`.
"""

import pandas as pd

from sdbench.analysis.stats import MIN_PAIRS
from sdbench.analysis.timing import Array, log_ratios
from sdbench.records.store import Results

FOREIGN = 0.1  # cores
UNSTABLE = 0.05  # standard deviation of the logarithm of a ratio of times, within one run


def unstable(results: Results) -> dict[str, str]:
    """What speaks against a run as the baseline of times: what it says would be its own noise.

    Returns:
        By variant a text, where its ratios to the baseline variant spread by over 5 %, or where
        there are too few of them to tell.
    """
    told = {
        variant: spread_text(logs) or _scarcity_text(logs)
        for (_, variant), logs in log_ratios(results).items()
    }
    return {variant: text for variant, text in told.items() if text}


def spread_text(logs: Array) -> str:
    """That the logarithms of times or ratios spread too far; empty where they do not."""
    spread = float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
    return f"times spread by {spread:.0%}" if spread > UNSTABLE else ""


def _scarcity_text(logs: Array) -> str:
    if len(logs) >= MIN_PAIRS:
        return ""
    return f"of {MIN_PAIRS} repeats that tell how times spread there are {len(logs)}"


def disturbances(runs: pd.DataFrame) -> dict[str, list[str]]:
    """What speaks against the times of every variant, from its measured calls that finished.

    Returns:
        By variant one text for each kind of disturbance; a variant without any is not in it, nor is
        one whose calls did not record it.
    """
    measured = runs[(runs["phase"] == "measured") & (runs["status"] == "ok")]
    disturbed: dict[str, list[str]] = {}
    for variant, calls in measured.groupby("variant"):
        load = calls["foreign_load"].mean()
        shared = int((calls["foreign_processes"].fillna(0) > 0).sum())
        held = int(calls["throttled"].fillna(False).sum())
        reasons = [f"others took {load:.1f} cores"] if load > FOREIGN else []
        reasons += [f"others were on the GPU in {shared} of {len(calls)} calls"] if shared else []
        reasons += [f"the device was held back in {held} of {len(calls)} calls"] if held else []
        if reasons:
            disturbed[str(variant)] = reasons
    return disturbed
