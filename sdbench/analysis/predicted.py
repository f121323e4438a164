"""What guided and unguided steps cost, and the saving that this lets expect of a variant.

A step takes a time of its own and one for every row that it evaluates, so a call's time follows
from its steps and rows. That holds where every row is the same work: of an accelerator's calls
nothing is expected.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from sdbench.analysis.calls import (
    by_unit,
    counted,
    finished,
    step_counts,
    steps_of,
    timed,
    units_of,
)
from sdbench.analysis.stats import Interval, ratio_interval
from sdbench.records.names import BASELINE
from sdbench.records.store import Results

UNKNOWN = Interval(np.nan, np.nan, np.nan)


class Prediction(NamedTuple):
    """The saving to expect of a variant, each with its 95 % interval over repeats.

    Attributes:
        call: share of the time of the baseline's call.
        loop: share of the time of its denoising loop.
    """

    call: Interval
    loop: Interval


def guidance_ratio(results: Results) -> Interval:
    """R, the time of a guided step over that of an unguided one, with its 95 % interval.

    The geometric mean over repeats of the ratio of `step_medians`. All of it is NaN without an
    unguided step.
    """
    medians = step_medians(results)
    return ratio_interval(medians[True], medians[False])


def step_medians(results: Results) -> pd.DataFrame:
    """Median seconds of a guided step (column True) and of an unguided one (False), by repeat.

    Steps come from calls that hold both kinds, so that nothing but guidance differs between them
    and a slow machine slows both; where there is none, from all calls. Never from those of an
    accelerator, whose steps differ among themselves, nor are steps counted in which only some
    images were guided. No row where one kind of step is missing.
    """
    return _medians(_comparable_steps(results))


def denoise_share(results: Results) -> float:
    """Share of the denoising loop in a call of the baseline: the median over its measured calls."""
    runs = timed(results)
    return float((runs["denoise_s"] / runs["latency_s"])[runs["variant"] == BASELINE].median())


def share_saved(ratios: "pd.Series[float]", *, level: float = 0.95) -> Interval:
    """Share of the baseline's time that is saved, from one ratio of times per repeat."""
    ratio = ratio_interval(ratios, np.ones(len(ratios)), level=level)
    return Interval(1 - ratio.estimate, 1 - ratio.hi, 1 - ratio.lo)


def has_rows_of_its_own(results: Results) -> "pd.Series[bool]":
    """Whether the rows of a variant are other work than the baseline's, by variant.

    As those of an accelerator are, and of a student whose layers run next to the weights. What
    compares numbers of rows then means nothing.
    """
    runs = results.runs.assign(own=_differ_in_work(results.runs))
    return runs.groupby("variant")["own"].any()


def call_counts(results: Results) -> pd.DataFrame:
    """Mean `steps` of a call and `guided` ones among them, by variant, as its rows count them.

    A step is guided by the share of the further rows that a guided step of the baseline evaluates.
    """
    runs = by_unit(finished(results))
    every = np.ones(len(results.steps), dtype=bool)
    per_call = step_counts(units_of(results), results.steps["guided"], every).reindex(runs.index)
    per_call = per_call[per_call["steps"] > 0]

    means = per_call.groupby(runs["variant"]).mean()
    further = runs["nfe"].astype(float).groupby(runs["variant"]).mean() - means["steps"]
    if BASELINE not in means.index:
        return means
    rows = further[BASELINE] / means.loc[BASELINE, "guided"]
    return means.assign(guided=further / rows)


def predictions(results: Results) -> dict[str, Prediction]:
    """The saving to expect of each variant, from calls that are not its own.

    A call's time is that around its loop, an unguided step's for each of its steps, and what a
    guided step takes more for each `2 B` rows of a step instead of `B`; rows in between count in
    proportion. The three times are medians by repeat over calls of other variants, which hold both
    kinds of steps where there are such (`step_medians`). The baseline's own calls count only where
    no other variant shows what a guided step takes. The saving is then taken as it is of measured
    times: from the geometric mean over repeats of the ratio to the baseline.

    Returns:
        NaN where a variant's rows are not the baseline's, and where no other variant's calls show
        both kinds of steps. The baseline saves nothing, without an interval, where anything is
        expected of others.
    """
    counts = call_counts(results)
    own = has_rows_of_its_own(results)
    steps = _comparable_steps(results)
    calls = _comparable(results)
    around = (calls["latency_s"] - calls["denoise_s"]).groupby(
        [calls["variant"], calls["repeat"]], observed=True
    )

    found = {BASELINE: Prediction(UNKNOWN, UNKNOWN)}
    for name in map(str, results.runs["variant"].unique()):
        known = not own[name] and {name, BASELINE} <= set(counts.index)
        if known and name != BASELINE:
            found[name] = _prediction(name, counts, steps, around.median())
        else:
            found[name] = Prediction(UNKNOWN, UNKNOWN)
    if any(not np.isnan(saving.loop.estimate) for saving in found.values()):
        nothing = Interval(0.0, np.nan, np.nan)
        found[BASELINE] = Prediction(nothing, nothing)
    return found


def _prediction(
    name: str, counts: pd.DataFrame, steps: pd.DataFrame, around: "pd.Series[float]"
) -> Prediction:
    """The saving of one variant.

    Args:
        name: of the variant.
        counts: as `call_counts` returns it.
        steps: as `_comparable_steps` returns it.
        around: time of a call around its loop, by variant and repeat.
    """
    without = [name, BASELINE]
    medians = _medians(steps[~steps["variant"].isin(without)])
    if medians.empty:
        without = [name]
        medians = _medians(steps[steps["variant"] != name])
    others = around[~around.index.get_level_values("variant").isin(without)]
    rest = others.groupby(level="repeat").median().reindex(medians.index)

    def loop(variant: str) -> "pd.Series[float]":
        made = counts["steps"][variant]
        further = medians[True] - medians[False]
        return medians[False] * made + further * counts["guided"][variant]

    own, baseline = loop(name), loop(BASELINE)
    return Prediction(share_saved((rest + own) / (rest + baseline)), share_saved(own / baseline))


def _comparable_steps(results: Results) -> pd.DataFrame:
    """Steps in which every row is the baseline's work, and all images are guided or none is.

    Returns:
        `variant`, `repeat`, `guided`, `latency_s`, and `mixed`: whether its call holds both kinds.
    """
    runs = by_unit(_comparable(results))
    units = units_of(results)
    codes = units.codes
    of_calls = runs.reindex(units.categories)

    # A step in which only some images were guided has rows that are no multiple of the batch.
    rows = results.steps["rows"].to_numpy("int64")
    batch = of_calls["batch"].fillna(1).to_numpy("int64")
    kept = steps_of(runs.reset_index(), results) & (rows % batch[codes] == 0)
    count = step_counts(units, results.steps["guided"], kept)
    both = ((count["guided"] > 0) & (count["guided"] < count["steps"])).to_numpy()
    return pd.DataFrame(
        {
            "variant": of_calls["variant"].astype("category").array[codes[kept]],
            "repeat": of_calls["repeat"].fillna(-1).to_numpy("int64")[codes[kept]],
            "guided": results.steps["guided"].to_numpy(bool)[kept],
            "latency_s": results.steps["latency_s"].to_numpy(float)[kept],
            "mixed": both[codes[kept]],
        }
    )


def _medians(steps: pd.DataFrame) -> pd.DataFrame:
    """Median time of both kinds of steps by repeat, of mixed calls where there are any."""
    if steps["mixed"].any():
        steps = steps[steps["mixed"]]
    medians = steps.pivot_table("latency_s", index="repeat", columns="guided", aggfunc="median")
    return medians.reindex(columns=[True, False]).dropna()


def _comparable(results: Results) -> pd.DataFrame:
    """Calls that had the device to themselves, and whose rows are the baseline's work."""
    runs = timed(results)
    runs = runs.assign(repeat=counted(results.runs)["repeat"].reindex(runs.index))
    return runs[~_differ_in_work(results.runs)[runs.index]]


def _differ_in_work(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Whether a call's rows are other work than the baseline's."""
    # A table that does not name such calls counts their work in the warm-up alone.
    measured = (runs["phase"] == "measured") & (runs["status"] == "ok")
    uncounted = measured & runs["flop"].isna() & bool(runs.loc[measured, "flop"].notna().any())
    return runs["accelerated"].fillna(uncounted).astype(bool)
