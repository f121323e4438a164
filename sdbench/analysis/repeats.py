"""The times of repeats: every call's with that of the baseline's call beside which it was timed.

Which calls count is decided in `calls.py`; `sdbench.records.call_times` takes their times.
"""

import numpy as np
import pandas as pd

from sdbench.analysis.calls import counted
from sdbench.records.call_times import OF_BASELINE, TIMES, call_times, usable
from sdbench.records.store import Results


def complete_repeats(results: Results) -> pd.DataFrame:
    """Time per (repeat, variant), summed over batches.

    Only where every batch of the study finished and had the device to itself. In lockstep a call's
    time is what its slices tell, in all others what it took.

    Returns:
        `latency_s`, `denoise_s`, and the same of the baseline's calls beside which they were timed,
        with `baseline_` before the names: NaN where one of these failed.
    """
    times = counted_times(results.runs, results.steps)
    groups = times.groupby(["repeat", "variant"], observed=True)
    totals = groups[[*TIMES, *OF_BASELINE]].sum(min_count=1)
    beside = groups[OF_BASELINE[0]].count() == groups.size()
    totals[OF_BASELINE] = totals[OF_BASELINE].where(beside, np.nan)

    # What ran in no repeat at all is not known here, so the fullest repeat says what is complete.
    calls = groups.size()
    images = groups["batch"].sum()
    complete: pd.Series[bool] = (
        (calls == calls.max()) & (images == images.max()) & ~groups["failed"].any()
    )
    return totals[complete]


def ratios(repeats: pd.DataFrame, column: str) -> pd.DataFrame:
    """Times over the baseline's beside which they were taken, by repeat and variant.

    Args:
        repeats: as `complete_repeats` returns them.
        column: `latency_s` (the call) or `denoise_s` (the loop).

    Returns:
        A row per repeat and a column per variant; NaN where one of both is not complete.
    """
    shares = repeats[column] / repeats[f"baseline_{column}"]
    return shares.unstack("variant")  # noqa: PD010 - a pivot would average, and is slow


def counted_times(runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The times of every measured call that counts, and of the baseline's beside it.

    Args:
        runs: of a study.
        steps: likewise.

    Returns:
        `variant`, `repeat`, `batch` (images), `failed`, and the columns of `complete_repeats`.
    """
    calls = counted(runs)
    times = calls[["variant", "repeat", "batch"]].assign(failed=~usable(calls))
    return times.join(call_times(calls, runs, steps))
