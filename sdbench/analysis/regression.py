"""Two runs of one study: which figures changed, by more than noise and by more than matters.

What does not depend on the machine (evaluations, work, image metrics, memory) is held to bounds.
Times are compared as ratios to the baseline variant within each run, so that a slower machine is no
regression.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sdbench.analysis.environments import differing_environment
from sdbench.analysis.stability import disturbance, disturbances, spread_text
from sdbench.analysis.stats import MIN_PAIRS
from sdbench.analysis.tables import SUMMARY, summarise
from sdbench.analysis.timing import (
    USUAL,
    Array,
    TimeTests,
    detectable,
    log_ratios,
    log_times,
    repeats_needed,
    time_tests,
    verdicts,
)
from sdbench.analysis.timing import Limits as Limits
from sdbench.records.store import Results, differing

EXACT = ("nfe", "rows", "forwards", "flop")
COMPARED = SUMMARY | {
    "runs": (*SUMMARY["runs"], *EXACT, "foreign_load", "foreign_processes", "throttled")
}
"""Columns that `compare` needs."""
PSNR_BOUND = 0.1  # dB
METRIC_BOUND = 0.002  # of any other metric, absolute
METRIC_SHARE = 0.05  # of the metric's distance from its value for identical images, where less
ROUNDING = 1e-4  # what a metric moves by where one value in a hundred is rounded otherwise
IDENTICAL = {"ssim": 1.0}  # value of a metric for identical images; 0 of all others
MEMORY_BOUND = 0.01  # relative
BAD = ("regression", "changed", "missing")
FREE = {"repeats", "name", "schema_version", "device", "pipeline"}
"""Fields in which two runs of one study may differ."""


class NotComparable(ValueError):
    """Two runs that say nothing about each other."""


def compare(
    baseline: Results, current: Results, limits: Limits = USUAL, *, absolute: bool = False
) -> pd.DataFrame:
    """Every figure of the baseline compared with the current run's.

    Args:
        baseline: the run that is known to be right.
        current: another run of the same study.
        limits: when a change of time counts.
        absolute: compare the times themselves, too.

    Returns:
        One row per variant and figure: `variant`, `figure`, `baseline`, `current`; `change`
        (relative for times and memory, else the difference), of times with `change_lo` and
        `change_hi`; `verdict`: "same", "regression", "improvement" (of a time), "changed" (less
        work or memory, or another metric: what should not move, and has to be accepted),
        "undecided" or "missing"; `unstable`, what speaks against a time in either run, else empty.
        Of times with 6 repeats there are also `detectable`, the smallest slowdown that these
        repeats find with the stated power, and, of an undecided one, `repeats_needed`: the repeats
        of both runs that find one of the threshold's size. It is missing where they are there
        already: the change is then one between none and the threshold. `disturbance` says what
        disturbed either run, the same in every row; empty where nothing did. How times are judged
        is said by `sdbench.analysis.timing.verdicts`; the interval of a change is of its test
        alone.

    Raises:
        NotComparable: the studies differ; absolute times of other machines or versions; names what
            differs.
    """
    # Other studies, or times of other machines, differ whatever the code does.
    bound = [
        {field: value for field, value in results.study.items() if field not in FREE}
        for results in (baseline, current)
    ]
    fields = sorted(differing(*bound))
    if fields:
        raise NotComparable(
            f"the runs are of different studies: they differ in {', '.join(fields)}"
        )
    keys = differing_environment(baseline, current)
    if absolute and keys:
        raise NotComparable(
            "--absolute needs one machine, the same versions and the same settings; these differ: "
            f"{', '.join(keys)}"
        )

    before = summarise(baseline).set_index("variant")
    after = summarise(current).set_index("variant")

    rows: list[dict[str, Any]] = []
    for variant in before.index:
        gone = (
            variant not in after.index
            or after.loc[variant, "failed"] > 0
            or bool(after.loc[variant, "unsupported"])
        )
        rows += _counts(variant, baseline, current, missing=gone)
        rows += _bounded(variant, before, after, missing=gone)
    table = pd.DataFrame([*rows, *_times(baseline, current, limits, absolute=absolute)])
    told = {"baseline": disturbance(baseline), "current": disturbance(current)}
    return table.assign(
        disturbance="; ".join(f"{run}: {text}" for run, text in told.items() if text)
    )


def _counts(
    variant: str, baseline: Results, current: Results, *, missing: bool
) -> list[dict[str, Any]]:
    """Counted figures, which must be equal."""
    rows = []
    for figure in EXACT:
        before, after = (_total(results.runs, variant, figure) for results in (baseline, current))
        if math.isnan(before):
            continue
        if missing or math.isnan(after):
            verdict = "missing"
        elif after == before:
            verdict = "same"
        else:
            verdict = "regression" if after > before else "changed"
        rows.append(_row(variant, figure, before, after, after - before, verdict))
    return rows


def _total(runs: pd.DataFrame, variant: str, figure: str) -> float:
    """Of one repeat; where measured calls do not count (an accelerator's work), of the warm-up."""
    ok = runs[(runs["variant"] == variant) & (runs["status"] == "ok") & runs[figure].notna()]
    measured = ok[ok["phase"] == "measured"]
    ok = measured if len(measured) else ok
    if ok.empty:
        return math.nan
    return float(ok.loc[ok["repeat"] == ok["repeat"].min(), figure].astype(float).sum())


def _bounded(
    variant: str, baseline: pd.DataFrame, current: pd.DataFrame, *, missing: bool
) -> list[dict[str, Any]]:
    """Memory and image metrics, which may move within their bounds, to either side."""
    # Savings and the change of alignment follow from what is compared already.
    metrics = [
        str(name)
        for name in baseline
        if f"{name}_lo" in baseline and not str(name).endswith(("saving", "difference"))
    ]

    rows = []
    for figure in ("peak_bytes", *metrics):
        before = float(baseline[figure][variant])
        if math.isnan(before):
            continue
        gone = missing or figure not in current
        after = math.nan if gone else float(current[figure][variant])
        rows.append(_bounded_row(variant, figure, before, after))
    return rows


def _bounded_row(variant: str, figure: str, before: float, after: float) -> dict[str, Any]:
    """One figure against its bound; more memory is worse, another metric has to be accepted."""
    memory = figure == "peak_bytes"
    change = after / before - 1 if memory else after - before
    bound = MEMORY_BOUND if memory else metric_bound(figure, before)

    if math.isnan(after):
        verdict = "missing"
    elif abs(change) <= bound:
        verdict = "same"
    else:
        verdict = "regression" if memory and change > 0 else "changed"
    return _row(variant, figure, before, after, change, verdict)


def metric_bound(figure: str, before: float) -> float:
    """By how much a metric of images may move: less where it is small, so that a doubling shows.

    Args:
        figure: the metric, or a figure made of it, whose name begins with the metric's.
        before: its value in the baseline.
    """
    metric, _, of = figure.partition("_")
    if metric == "psnr":
        return PSNR_BOUND
    identical = 0.0 if of == "changed" else IDENTICAL.get(metric, 0.0)
    distance = abs(before - identical)
    return min(METRIC_BOUND, max(ROUNDING, METRIC_SHARE * distance))


def _times(
    baseline: Results, current: Results, limits: Limits, *, absolute: bool = False
) -> list[dict[str, Any]]:
    """Times, as ratios to the baseline variant and where asked themselves, with their tests."""
    before = log_ratios(baseline)
    after = log_ratios(current)
    if absolute:
        before = before | log_times(baseline)
        after = after | log_times(current)

    # One test per figure and variant; the levels hold for all of them together.
    tests = time_tests(before, after, limits)
    judged = verdicts(tests, limits)

    # A change that a busy machine explains is no change of the code.
    disturbed = {
        name: disturbances(run.runs) for name, run in (("baseline", baseline), ("current", current))
    }

    rows = []
    nothing = np.array([])
    for place, (key, earlier) in enumerate(before.items()):
        figure, variant = key
        later = after.get(key, nothing)
        change, lo, hi = (math.expm1(values[place]) for values in tests[:3])
        row = _row(variant, figure, _centre(earlier), _centre(later), change, str(judged[place]))
        row |= {"change_lo": lo, "change_hi": hi}
        row |= _precision(tests, place, min(len(earlier), len(later)), row["verdict"], limits)
        logs = {"baseline": earlier, "current": later}
        row["unstable"] = "; ".join(_doubts(variant, logs, disturbed))
        rows.append(row)
    return rows


def _precision(
    tests: TimeTests, place: int, repeats: int, verdict: str, limits: Limits
) -> dict[str, float | int | None]:
    """What the repeats of one test find, and how many would decide it where these did not."""
    freedom = float(tests.freedom[place])
    # Equal times have no spread, and few repeats do not know it.
    if math.isinf(freedom) or repeats < MIN_PAIRS:
        return {"detectable": math.nan, "repeats_needed": None}
    number = int((~np.isnan(tests.p)).sum())
    found = detectable(float(tests.error[place]), freedom, number, limits)
    needed = None
    if verdict == "undecided":
        needed = repeats_needed(float(tests.spread[place]), freedom, number, limits)
    return {
        "detectable": found,
        "repeats_needed": needed if needed is None or needed > repeats else None,
    }


def _centre(logs: Array) -> float:
    """Geometric mean of what the logarithms are of."""
    return float(np.exp(logs.mean())) if len(logs) else math.nan


def _doubts(
    variant: str, logs: Mapping[str, Array], disturbed: Mapping[str, Mapping[str, list[str]]]
) -> list[str]:
    """What speaks against a variant's times in each run: their spread, and what disturbed them."""
    doubts = []
    for run, reasons in disturbed.items():
        told = [text for text in [spread_text(logs[run]), *reasons.get(variant, [])] if text]
        if told:
            doubts.append(f"{run}: {', '.join(told)}")
    return doubts


def _row(
    variant: str, figure: str, before: float, after: float, change: float, verdict: str
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "variant": variant,
        "figure": figure,
        "baseline": before,
        "current": after,
        "change": change,
    }
    return row | {
        "change_lo": math.nan,
        "change_hi": math.nan,
        "verdict": verdict,
        "detectable": math.nan,
        "repeats_needed": None,
        "unstable": "",
    }
