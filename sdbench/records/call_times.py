"""The times of calls, each with that of the baseline's call beside which it was timed.

Of calls in lockstep they are what `slices.py` makes of their steps, of all others what they took.
They are here so that a study which measures until its intervals are narrow takes the times that the
analysis takes. Which calls count is decided in `sdbench.analysis.calls`.
"""

from collections.abc import Hashable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sdbench.records.slices import Array, by_kind, by_step, held, location, pairs

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


def usable(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Whether a call finished, and no other one shared its device."""
    # A table that does not say so is of calls one after another.
    return (runs["status"] == "ok") & runs["exclusive"].fillna(True).astype(bool)


def in_rounds(calls: pd.DataFrame) -> bool:
    """Whether calls took turns, so that every round of them knows its times by itself."""
    return bool((calls["timing"] == "lockstep").fillna(False).any())


def call_times(calls: pd.DataFrame, runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The times of calls, and of the baseline's beside them.

    Args:
        calls: rows of the runs, with the baseline's unit as `beside`; missing where it did not run.
        runs: of the study.
        steps: likewise.

    Returns:
        By the label of a call: `latency_s`, `denoise_s`, and the same of the baseline's call with
        `baseline_` before the names, which are NaN where it failed.
    """
    calls = calls.astype({"unit": "string", "beside": "string"})
    fine = runs[usable(runs)].astype({"unit": "string"}).set_index("unit")
    times = calls[TIMES].astype(float)
    times[OF_BASELINE] = fine[TIMES].reindex(calls["beside"]).to_numpy(dtype=float)

    both = calls["unit"].isin(fine.index) & calls["beside"].isin(fine.index)
    turns = both & (calls["timing"] == "lockstep").fillna(False)
    turns[turns] = (fine["timing"][calls.loc[turns, "beside"]] == "lockstep").to_numpy(bool)
    if turns.any():
        told = _from_slices(calls[turns], fine, steps)
        times.loc[told.index, told.columns] = told
    return times


def _from_slices(calls: pd.DataFrame, every: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Times of calls that took turns with their baseline's, as their slices tell them.

    Args:
        calls: as `call_times` takes them.
        every: finished calls of the study, by unit.
        steps: of the study.
    """
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
