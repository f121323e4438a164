"""The times of repeats: every call's with that of the baseline's call beside which it was timed.

Which calls count is decided in `calls.py`, what slices say of a call in `slices.py`.
"""

from collections.abc import Hashable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sdbench.analysis.calls import by_unit, counted, usable
from sdbench.analysis.slices import Array, by_kind, by_step, held, location, pairs
from sdbench.records.store import Results

TIMES = ["latency_s", "denoise_s"]
"""Of a call and of its loop, in seconds."""
OF_BASELINE = [f"baseline_{name}" for name in TIMES]
"""The same of the baseline's call beside which it was timed."""


class Slices(NamedTuple):
    """The steps of a call.

    Attributes:
        seconds: of every step.
        rows: of the denoiser, likewise.
    """

    seconds: Array
    rows: NDArray[np.int64]


def complete_repeats(results: Results) -> pd.DataFrame:
    """Time per (repeat, variant), summed over batches.

    Only where every batch of the study finished and had the device to itself. In lockstep a call's
    time is what its slices tell, in all others what it took.

    Returns:
        `latency_s`, `denoise_s`, and the same of the baseline's calls beside which they were timed,
        with `baseline_` before the names: NaN where one of these failed.
    """
    times = call_times(results.runs, results.steps)
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


def call_times(runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The times of every measured call that counts, and of the baseline's beside it.

    Args:
        runs: of a study.
        steps: likewise.

    Returns:
        `variant`, `repeat`, `batch` (images), `failed`, and the columns of `complete_repeats`.
    """
    calls = counted(runs)
    fine = by_unit(runs[usable(runs)])
    times = calls[["variant", "repeat", "batch", *TIMES]].assign(
        failed=~calls["unit"].isin(fine.index)
    )
    times[OF_BASELINE] = fine[TIMES].reindex(calls["beside"]).to_numpy(dtype=float)

    both = calls[~times["failed"] & times[OF_BASELINE[0]].notna()]
    if (both["timing"] == "lockstep").any():
        told = _from_slices(both, runs, steps)
        times.loc[told.index, told.columns] = told
    return times


def _from_slices(calls: pd.DataFrame, runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Times of those calls that took turns with their baseline's, as their slices tell them.

    Args:
        calls: that finished, and whose baseline's did, with its unit as `beside`.
        runs: of the study.
        steps: likewise.
    """
    every = by_unit(runs)
    turns = every["timing"] == "lockstep"
    calls = calls[turns[calls["unit"]].to_numpy(bool) & turns[calls["beside"]].to_numpy(bool)]
    slices = _slices(steps, {*calls["unit"], *calls["beside"]})

    found = calls.assign(loop=np.nan, baseline_s=np.nan)
    for alike in _alike(calls, slices):
        names = found.loc[alike, ["unit", "beside"]]
        own, baseline = (np.stack([slices[unit].seconds for unit in names[name]]) for name in names)
        if not ((own > 0).all() and (baseline > 0).all()):
            continue  # a clock that is coarser than a step knows sums alone
        count = baseline.shape[1]
        found.loc[alike, "baseline_s"] = count * np.exp(location(np.log(baseline)))
        found.loc[alike, "loop"] = _loops(found.loc[alike], own, baseline, slices) / count
    return _with_around(found.dropna(subset=["loop"]), every)


def _loops(calls: pd.DataFrame, own: Array, baseline: Array, slices: dict[str, Slices]) -> Array:
    """Times of loops that are alike, in steps of the baseline."""
    if not calls["accelerated"].any():
        return by_kind(pairs(own, baseline), slices[calls["unit"].iloc[0]].rows)
    if len(calls) > 1:
        return by_step(pairs(own, baseline))
    return baseline.shape[1] * own.sum(axis=1) / baseline.sum(axis=1)


def _with_around(calls: pd.DataFrame, every: pd.DataFrame) -> pd.DataFrame:
    """The columns of `complete_repeats`, from the ratios of loops and what is around them."""
    around = every["latency_s"] - every["denoise_s"]
    times = pd.DataFrame(
        {
            "latency_s": around[calls["unit"]].to_numpy(float),
            "baseline_latency_s": around[calls["beside"]].to_numpy(float),
        },
        calls.index,
    )
    times = times.div(calls["baseline_s"], axis=0)
    for _, alike in times.groupby([calls["variant"], calls["batch"]], observed=True):
        times.loc[alike.index] = held(alike.to_numpy().T).T

    times["latency_s"] += calls["loop"]
    times["baseline_latency_s"] += 1
    times["denoise_s"] = calls["loop"]
    times["baseline_denoise_s"] = 1.0
    return times.mul(calls["baseline_s"], axis=0)


def _slices(steps: pd.DataFrame, units: set[str]) -> dict[str, Slices]:
    """Seconds and rows of the steps of some calls, in their order."""
    chosen = steps[steps["unit"].isin(units)].astype({"unit": "string"})
    chosen = chosen.sort_values(["unit", "step"], kind="stable")
    names, begins = np.unique(chosen["unit"].to_numpy(str), return_index=True)
    seconds = np.split(chosen["latency_s"].to_numpy(float), begins[1:])
    rows = np.split(chosen["rows"].to_numpy("int64"), begins[1:])
    return dict(zip(names.tolist(), map(Slices, seconds, rows), strict=True))


def _alike(calls: pd.DataFrame, slices: dict[str, Slices]) -> Iterator[list[Hashable]]:
    """Labels of calls that may be judged at once: of the same work at every step."""
    # Of an accelerator the rows do not tell the work; that it was the same, the same images do.
    images = calls["sha256"].astype("string").fillna(calls["unit"])
    accelerated = calls["accelerated"].fillna(False).astype(bool)
    places = zip(calls.index, calls["unit"], calls["beside"], strict=True)

    alike: dict[tuple[Hashable, ...], list[Hashable]] = {}
    for label, unit, beside in places:
        work: tuple[Hashable, ...] = (slices[unit].rows.tobytes(),)
        if accelerated[label]:
            work = (calls["variant"][label], images[label])
        alike.setdefault((len(slices[beside].seconds), *work), []).append(label)
    yield from alike.values()
