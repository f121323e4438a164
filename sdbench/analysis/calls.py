"""Which calls and steps of a study count.

The times of its repeats are in `repeats.py`, and what is made of both in `tables.py`.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sdbench.analysis.stats import MIN_PAIRS
from sdbench.records.call_times import in_rounds, usable
from sdbench.records.names import BASELINE
from sdbench.records.store import Results

COUNTED = ("exclusive", "timing", "beside", "disturbed", "sha256")
"""Columns of the runs that say which calls count, and how they were timed."""


def finished(results: Results) -> pd.DataFrame:
    """Calls that did not fail, without warm-ups and those that are there to be compared with."""
    runs = results.runs
    return runs[~runs["phase"].isin(["warmup", "companion"]) & (runs["status"] == "ok")]


def timed(results: Results) -> pd.DataFrame:
    """Measured calls that finished, had the device to themselves, and whose repeats count."""
    runs = results.runs
    calls = runs.loc[counted(runs).index]
    return calls[usable(calls)]


def counted(runs: pd.DataFrame) -> pd.DataFrame:
    """Measured calls whose times count, finished or not.

    Disturbed ones do not where at least 6 repeats without any are left, and all do where there are
    fewer. What decides is the baseline's calls, and whether they were disturbed. What was measured
    again takes the place of what does not count: of every batch, the calls that count are numbered.
    In lockstep every round, a batch in a repeat, knows its times by itself, and is one of these
    repeats.

    Args:
        runs: of a study.

    Returns:
        Their rows, with the number of the `repeat` that they are part of, and `beside`, the unit of
        the baseline's call that they are compared with; missing where it did not run.
    """
    measured = runs["phase"] == "measured"
    calls = runs[measured].assign(beside=_beside(runs[measured]))
    calls["unit"] = calls["unit"].astype("string")
    disturbed = calls["disturbed"].fillna(False).astype(bool)
    by_round = in_rounds(calls)
    if not disturbed.any() and not by_round:
        return calls

    # A batch is known by its images of the baseline, or else by their number alone.
    calls = calls.sort_values("repeat", kind="stable")
    calls["disturbed"] = disturbed
    calls["of"] = _batches(runs, calls)
    size = calls.groupby(["variant", "repeat", "of"], observed=True).size().groupby("of").max()
    calm = calls[~calls["disturbed"]].groupby(["variant", "of"], observed=True).size()
    whole = calm.astype(float) if by_round else calm.div(size, level="of")
    of_batches = whole.unstack("of").fillna(0)  # noqa: PD010 - a pivot would average
    repeats = of_batches.sum(axis=1) if by_round else of_batches.min(axis=1)

    # A variant that ran beside calls of its own is judged by them, all others by the baseline's.
    phase = by_unit(runs)["phase"].reindex(calls["beside"]).to_numpy()
    apart = pd.Series(phase == "companion", calls.index).groupby(calls["variant"]).all()
    enough = calls["variant"].map(_enough(repeats, apart)).fillna(False).astype(bool)
    calls = calls[~(calls["disturbed"] & enough)]
    numbers = _numbers(calls, size, by_round=by_round)
    return calls.assign(repeat=numbers.astype("Int64")).drop(columns="of")


def _numbers(calls: pd.DataFrame, size: "pd.Series[int]", *, by_round: bool) -> "pd.Series[int]":
    """Numbers of the repeats of calls, or of their rounds.

    Args:
        calls: with `of`, what they have in common with others of their batch.
        size: how many calls of a repeat have that in common.
        by_round: whether every round is a repeat.
    """
    place = calls.groupby(["variant", "of"], observed=True).cumcount()
    alike = calls["of"].map(size).astype("int64")
    repeat: pd.Series[int] = place // alike
    if not by_round:
        return repeat
    first = size.cumsum() - size  # of the rounds of a repeat
    return repeat * int(size.sum()) + calls["of"].map(first).astype("int64") + place % alike


def _beside(calls: pd.DataFrame) -> "pd.Series[str]":
    """Unit of the baseline's call beside which each measured call was timed."""
    named = calls["beside"].astype("string")
    if named.notna().all():
        return named

    # Where nothing says so, calls of a repeat are compared in the order of its batches.
    place = calls.groupby(["variant", "repeat", "batch"], observed=True).cumcount()
    places = pd.MultiIndex.from_arrays([calls["repeat"], calls["batch"], place])
    units = pd.Series(calls["unit"].astype("string").array, places)
    of_baseline = units[(calls["variant"] == BASELINE).to_numpy(bool)].reindex(places)
    return named.fillna(pd.Series(of_baseline.array, calls.index))


def _batches(runs: pd.DataFrame, calls: pd.DataFrame) -> "pd.Series[str]":
    """What is the same for all calls of a batch of pairs, and for no other where that is known."""
    images = by_unit(runs)["sha256"].astype("string").reindex(calls["beside"]).array
    batches = pd.Series(images, calls.index)
    in_repeat = calls[calls["variant"] == BASELINE].groupby("repeat").size().max()
    known = batches.notna().all() and batches.nunique() == in_repeat
    return batches if known else calls["batch"].astype("string")


def _enough(repeats: "pd.Series[float]", apart: "pd.Series[bool]") -> "pd.Series[bool]":
    """Whether the repeats that were not disturbed are enough, by variant."""
    deciding = repeats.where(apart.reindex(repeats.index), repeats.get(BASELINE, 0))
    return deciding >= MIN_PAIRS


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
