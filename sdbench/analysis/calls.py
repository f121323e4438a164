"""Which calls and steps of a study count, and the times of its repeats.

What is made of them is in `tables.py`.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sdbench.records.names import BASELINE
from sdbench.records.store import Results


def finished(results: Results) -> pd.DataFrame:
    """Calls that did not fail, without warm-ups."""
    runs = results.runs
    return runs[(runs["phase"] != "warmup") & (runs["status"] == "ok")]


def timed(results: Results) -> pd.DataFrame:
    """Measured calls that finished and had the device to themselves."""
    runs = finished(results)
    return runs[(runs["phase"] == "measured") & ~_beside(runs)]


def _beside(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Whether other calls shared a call's device."""
    # A table that does not say so is of calls in turn.
    return ~runs["exclusive"].fillna(True).astype(bool)


def uncounted(results: Results) -> list[str]:
    """Why the work of the calls is not counted; nothing where it is."""
    reasons = {env.get("uncounted") for env in results.environment.values()}
    return sorted(str(reason) for reason in reasons if reason)


def by_unit(runs: pd.DataFrame) -> pd.DataFrame:
    """Calls by their identifier."""
    return runs.astype({"unit": "string"}).set_index("unit")


def units_of(results: Results) -> pd.Categorical:
    """The unit of every step, as a category."""
    # What holds for a call is then looked up once per call, not once per step.
    return pd.Categorical(results.steps["unit"])


def step_counts(
    units: pd.Categorical, guided: "pd.Series[bool]", kept: NDArray[np.bool_]
) -> pd.DataFrame:
    """Number of `steps` and of `guided` ones by unit, of those that are kept."""
    size = len(units.categories)
    steps = np.bincount(units.codes[kept], minlength=size)
    guided_steps = np.bincount(units.codes[kept & guided.to_numpy(bool)], minlength=size)
    return pd.DataFrame({"steps": steps, "guided": guided_steps}, index=units.categories)


def steps_of(runs: pd.DataFrame, results: Results) -> NDArray[np.bool_]:
    """Which steps are of some calls."""
    units = units_of(results)
    chosen: NDArray[np.bool_] = by_unit(runs).index.get_indexer(units.categories) >= 0
    return chosen[units.codes]


def complete_repeats(runs: pd.DataFrame) -> pd.DataFrame:
    """Time per (repeat, variant), summed over batches.

    Only where every batch of the study finished and had the device to itself.
    """
    measured = runs[runs["phase"] == "measured"]
    measured = measured.assign(failed=(measured["status"] != "ok") | _beside(measured))
    groups = measured.groupby(["repeat", "variant"])
    totals = groups[["latency_s", "denoise_s"]].sum(min_count=1)

    # What ran in no repeat at all is not known here, so the fullest repeat says what is complete.
    calls = groups.size()
    images = groups["batch"].sum()
    complete: pd.Series[bool] = (
        (calls == calls.max()) & (images == images.max()) & ~groups["failed"].any()
    )
    return totals[complete]


def side_by_side(repeats: pd.DataFrame, column: str) -> pd.DataFrame:
    """Times with a row per repeat and a column per variant; NaN where a repeat is not complete."""
    return repeats[column].unstack("variant")  # noqa: PD010 - a pivot would average, and is slow


def paired(repeats: pd.DataFrame, column: str, variant: str) -> pd.DataFrame:
    """Times of a variant and of the baseline in the repeats that have both, one column each."""
    times = side_by_side(repeats, column)
    return times.reindex(columns=list(dict.fromkeys([variant, BASELINE]))).dropna()
