"""Which rounds of a study were disturbed: one rule, fixed before any time is seen.

A round is a call of the baseline with those that were timed beside it. The rule reads the
baseline's steps and what others did meanwhile, never another variant's time: what is left out by it
favours nobody. What is watched is in `sdbench.instruments.disturbance`, what is said of a run in
`sdbench.analysis.stability`.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sdbench.records.names import BASELINE
from sdbench.records.schema import columns

LOAD = 0.2
"""Cores that others may take. Daemons of calm machines took up to 0.06; one busy process takes 1,
and a step that waits for all of its threads loses more than that share of the cores."""
TICKS_S = 0.05
"""Processor time of others below which no load is read from it: counters tick in hundredths of a
second, on every core."""
SPREAD = 0.2
"""Distance of the quartiles of a call's steps, of equal work, over their median. It was at most
0.17 in calm calls, and where other processes ran beside them mostly above 0.2."""
APART = 0.25
"""By how much the steps of a call may exceed those of the lowest quarter of calls of equal work.
The levels of calm calls scatter by 6 %: this is four times as far."""
KNOWN = 3
"""Calls of equal work from which it is known how the steps of one differ in work."""

TIMED = ("measured", "companion")
EQUAL = ("num_steps", "batch", "height", "width", "timing")
"""Columns by which the baseline's calls are of equal work, and timed alike."""
COLUMNS = {
    "runs": (
        *("variant", "repeat", "phase", "status", "latency_s", "denoise_s", "exclusive"),
        *("foreign_load", "foreign_processes", "throttled", "beside", *EQUAL),
    ),
    "steps": ("latency_s",),
}
"""Columns of the tables that the rule reads, besides the keys."""

Array = NDArray[np.float64]


def disturbed_rounds(runs: pd.DataFrame, steps: pd.DataFrame) -> "pd.Series[bool]":
    """Whether each round was disturbed, by the unit of the baseline's call.

    Args:
        runs: the table of that name, or that of a study that still runs.
        steps: the same; those of the baseline suffice.

    Returns:
        One value per call of the baseline that is measured or a companion, finished, and had the
        device to itself.
    """
    return rounds(runs, steps)["disturbed"]


def rounds(runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """What disturbed every round, by the unit of the baseline's call, and whether it was too much.

    Args:
        runs: as `disturbed_rounds` takes them.
        steps: the same.

    Returns:
        `load` (cores that others took, NaN where nothing told), `others` (processes on the GPU),
        `held_back` (calls in which processor or GPU were), `spread` (of the steps, NaN below three
        calls of equal work), `apart` (by how much the call's steps exceed those of the lowest
        quarter of calls of equal work), `disturbed`.
    """
    counted = _counted(runs)
    calls = counted[counted["variant"] == BASELINE]
    around = _around(counted, calls.index)
    spread, apart = _courses(calls, steps)

    found = around.assign(spread=spread, apart=apart)
    beyond = (found["load"] > LOAD) | (found["spread"] > SPREAD) | (found["apart"] > APART)
    found["disturbed"] = beyond | (found["others"] > 0) | (found["held_back"] > 0)
    return found


def _counted(runs: pd.DataFrame) -> pd.DataFrame:
    """Timed calls that finished and had the device to themselves, by unit, with all columns."""
    # A table is older than some columns, and a runner's does not have them yet.
    empty = {
        name: pd.Series(pd.NA, runs.index, dtype="Float64" if dtype == "float64" else dtype)
        for name, dtype in ((name, columns("runs")[name].dtype) for name in COLUMNS["runs"])
        if name not in runs
    }
    whole = runs.assign(**empty)
    alone = whole["exclusive"].astype("boolean").fillna(True)
    kept = whole[whole["phase"].isin(TIMED) & (whole["status"] == "ok") & alone]
    return kept.astype({"unit": "string", "variant": "string"}).set_index("unit")


def _around(counted: pd.DataFrame, units: "pd.Index[Any]") -> pd.DataFrame:
    """What others did in the calls of each round."""
    # An old table names no round, so there the baseline's own call stands for it.
    beside = counted["beside"].astype("string")
    named = beside.fillna(pd.Series(counted.index, counted.index, dtype="string"))
    seconds = counted["latency_s"].astype("Float64")
    taken = counted["foreign_load"].astype("Float64") * seconds
    calls = pd.DataFrame(
        {
            "taken_s": taken,
            "seconds": seconds.where(taken.notna()),
            "others": counted["foreign_processes"].astype("Int64").fillna(0),
            "held_back": counted["throttled"].astype("boolean").fillna(False).astype(int),
        }
    )
    groups = calls.groupby(named.to_numpy())
    sums = groups[["taken_s", "seconds", "held_back"]].sum(min_count=1).reindex(units)

    load = sums["taken_s"] / sums["seconds"]
    ticks = (sums["taken_s"] < TICKS_S).fillna(False)
    return pd.DataFrame(
        {
            "load": load.mask(ticks, 0.0).astype("float64"),
            "others": groups["others"].max().reindex(units).astype(int),
            "held_back": sums["held_back"].astype(int),
        }
    )


def _courses(
    calls: pd.DataFrame, steps: pd.DataFrame
) -> "tuple[pd.Series[float], pd.Series[float]]":
    """Spread of every call's steps, and how far its level lies above that of others."""
    spread = pd.Series(np.nan, calls.index, dtype="float64")
    apart = spread.copy()
    seconds = _seconds(calls, steps)

    keys = [calls[name].astype("string").fillna("") for name in EQUAL]
    for _, equal in calls.groupby(keys):
        courses = [seconds.get(unit, np.array([])) for unit in equal.index]
        levels = np.array([np.median(course) if len(course) else np.nan for course in courses])
        # A table without steps still tells how long the loop took.
        loops = equal["denoise_s"].astype("Float64").to_numpy(float, na_value=np.nan)
        levels = np.where(np.isnan(levels), loops, levels)
        apart[equal.index] = levels / np.quantile(levels, 0.25, method="lower") - 1
        spread[equal.index] = _spreads(courses)
    return spread, apart


def _seconds(calls: pd.DataFrame, steps: pd.DataFrame) -> dict[str, Array]:
    """Times of the steps of each call, in their order."""
    # A table may have millions of steps, so that units are compared once each.
    units = pd.Categorical(steps["unit"])
    names = units.categories.astype(str)
    own = names.isin(calls.index)[units.codes] if len(steps) else np.zeros(0, dtype=bool)
    times = steps.loc[own, ["step", "latency_s"]].assign(unit=names[units.codes[own]])
    groups = times.sort_values("step", kind="stable").groupby("unit")["latency_s"]
    return {str(unit): group.to_numpy(float) for unit, group in groups}


def _spreads(courses: list[Array]) -> Array:
    """Spread of each course of steps, whose usual differences in work are taken out of it."""
    lengths = {len(course) for course in courses}
    if len(courses) < KNOWN or len(lengths) > 1 or 0 in lengths:
        return np.full(len(courses), np.nan)

    # Of some models later steps are another network's, so a step is held to its like.
    times = np.array(courses)
    relative = times / np.median(times, axis=1, keepdims=True)
    relative /= np.median(relative, axis=0)
    low, high = np.quantile(relative, (0.25, 0.75), axis=1)
    return np.asarray((high - low) / np.median(relative, axis=1))
