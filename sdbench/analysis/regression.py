"""Two runs of one study: which figures changed, by more than noise and by more than matters.

What does not depend on the machine (evaluations, work, image metrics, memory) is held to bounds. Times are compared as
ratios to the baseline variant within each run, so that a slower machine is no regression.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from sdbench.analysis.stability import disturbances
from sdbench.analysis.tables import SUMMARY, complete_repeats, paired, summarise
from sdbench.records.names import BASELINE
from sdbench.records.store import Results

EXACT = ("nfe", "rows", "forwards", "flop")
COMPARED = SUMMARY | {
    "runs": (*SUMMARY["runs"], *EXACT, "foreign_load", "foreign_processes", "throttled")
}
"""Columns that `compare` needs."""
BOUNDS = {"psnr": 0.1}  # dB
METRIC_BOUND = 0.002  # of any other metric, absolute
MEMORY_BOUND = 0.01  # relative
UNSTABLE = 0.05  # spread of the ratios of one run
BAD = ("regression", "changed", "missing")
RATIO, ABSOLUTE = "time ratio to cfg", "time of the loop"
FREE = {"repeats", "name", "schema_version", "device"}
"""Fields in which two runs of one study may differ."""


class NotComparable(ValueError):
    """Two runs that say nothing about each other."""


@dataclass(frozen=True)
class Limits:
    """When a change of time counts.

    Args:
        level: of the test, over all variants together (Holm).
        threshold: the smallest change that matters, relative.
        power: with which a change of the threshold's size would be found, for the number of runs that would decide.
    """

    level: float = 0.05
    threshold: float = 0.03
    power: float = 0.8


def compare(
    baseline: Results, current: Results, limits: Limits = Limits(), *, absolute: bool = False
) -> pd.DataFrame:
    """Every figure of the baseline beside the current run's.

    Args:
        baseline: the run that is known to be right.
        current: another run of the same study.
        limits: when a change of time counts.
        absolute: compare the times themselves, too.

    Returns:
        One row per variant and figure: `variant`, `figure`, `baseline`, `current`; `change` (relative for times and
        memory, else the difference), of times with `change_lo` and `change_hi`; `verdict`: "same", "regression",
        "improvement" (of a time), "changed" (less work or memory, or another metric: what should not move, and has to
        be accepted), "undecided" or "missing"; `repeats_needed`, where more repeats would decide; `unstable`, what
        speaks against a time in either run, else empty.

    Raises:
        NotComparable: the studies differ; absolute times of other machines or versions; names what differs.
    """
    fields = _differing(baseline.study, current.study, ignore=FREE)
    if fields:
        raise NotComparable(f"the studies differ in {', '.join(fields)}")
    keys = differing_environment(baseline, current)
    if absolute and keys:
        raise NotComparable(
            f"absolute times need one machine and the same versions; these differ: {', '.join(keys)}"
        )
    known, found = summarise(baseline).set_index("variant"), summarise(current).set_index("variant")
    rows: list[dict[str, Any]] = []
    for variant in known.index:
        gone = (
            variant not in found.index
            or found.loc[variant, "failed"] > 0
            or bool(found.loc[variant, "unsupported"])
        )
        rows += _counts(variant, baseline, current, missing=gone)
        rows += _bounded(variant, known, found, missing=gone)
    return pd.DataFrame([*rows, *_times(baseline, current, limits, absolute=absolute)])


def differing_environment(baseline: Results, current: Results) -> list[str]:
    """Keys in which the machines and versions of two runs differ; absolute times need there to be none.

    What is compared is sdbench itself, so its own version and commit may differ.
    """
    first, second = (
        [_flat(env) for _, env in sorted(results.environment.items())]
        for results in (baseline, current)
    )
    pairs = [(one, other) for one in first for other in second]
    return sorted(
        {key for pair in pairs for key in _differing(*pair, ignore={"commit", "packages.sdbench"})}
    )


def _flat(env: Mapping[str, Any]) -> dict[str, Any]:
    """An environment with `packages.torch` for its entries of entries."""
    flat: dict[str, Any] = {}
    for key, value in env.items():
        flat |= (
            {f"{key}.{name}": entry for name, entry in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
    return flat


def _differing(
    first: Mapping[str, Any], second: Mapping[str, Any], *, ignore: set[str]
) -> list[str]:
    return sorted(key for key in {*first, *second} - ignore if first.get(key) != second.get(key))


def _counts(
    variant: str, baseline: Results, current: Results, *, missing: bool
) -> list[dict[str, Any]]:
    """Counted figures, which must be equal."""
    rows = []
    for figure in EXACT:
        before, after = (_total(results.runs, variant, figure) for results in (baseline, current))
        if math.isnan(before):
            continue
        gone = missing or math.isnan(after)
        verdict = (
            "missing"
            if gone
            else "same"
            if after == before
            else "regression"
            if after > before
            else "changed"
        )
        rows.append(_row(variant, figure, before, after, after - before, verdict))
    return rows


def _total(runs: pd.DataFrame, variant: str, figure: str) -> float:
    """Of one repeat; where measured calls do not count (an accelerator's work), of the warm-up."""
    ok = runs[(runs["variant"] == variant) & (runs["status"] == "ok") & runs[figure].notna()]
    measured = ok[ok["phase"] == "measured"]
    ok = measured if len(measured) else ok
    return (
        float(ok.loc[ok["repeat"] == ok["repeat"].min(), figure].astype(float).sum())
        if len(ok)
        else math.nan
    )


def _bounded(
    variant: str, known: pd.DataFrame, found: pd.DataFrame, *, missing: bool
) -> list[dict[str, Any]]:
    """Memory and image metrics, which may move within their bounds, to either side."""
    metrics = [
        name
        for name in known
        if f"{name}_lo" in known and not str(name).endswith(("saving", "difference"))
    ]
    rows = []
    for figure in ("peak_bytes", *map(str, metrics)):
        before = float(known[figure][variant])
        if math.isnan(before):
            continue
        after = math.nan if missing or figure not in found else float(found[figure][variant])
        memory = figure == "peak_bytes"
        change = after / before - 1 if memory else after - before
        bound = MEMORY_BOUND if memory else BOUNDS.get(figure, METRIC_BOUND)
        if math.isnan(after):
            verdict = "missing"
        elif abs(change) <= bound:
            verdict = "same"
        else:
            verdict = "regression" if memory and change > 0 else "changed"
        rows.append(_row(variant, figure, before, after, change, verdict))
    return rows


def _times(
    baseline: Results, current: Results, limits: Limits, *, absolute: bool = False
) -> list[dict[str, Any]]:
    before, after = _log_ratios(baseline), _log_ratios(current)
    if absolute:
        before, after = before | _log_times(baseline), after | _log_times(current)
    nothing = np.array([])
    tests = {key: _Test.of(before[key], after.get(key, nothing), limits) for key in before}
    corrected = _holm({key: test.p for key, test in tests.items()})
    disturbed = {
        name: disturbances(run.runs) for name, run in (("baseline", baseline), ("current", current))
    }
    rows = []
    for key, test in tests.items():
        figure, variant = key
        base, now = (
            float(np.exp(logs.mean())) if len(logs) else math.nan
            for logs in (before[key], after.get(key, nothing))
        )
        row = _row(
            variant,
            figure,
            base,
            now,
            math.expm1(test.change),
            test.verdict(corrected[key], limits),
        )
        row |= {"change_lo": math.expm1(test.lo), "change_hi": math.expm1(test.hi)}
        row["repeats_needed"] = test.needed if row["verdict"] == "undecided" else None
        reasons = [f"times spread by {test.spread:.0%}"] if test.spread > UNSTABLE else []
        reasons += [
            f"{name}: {', '.join(found[variant])}"
            for name, found in disturbed.items()
            if variant in found
        ]
        row["unstable"] = "; ".join(reasons)
        rows.append(row)
    return rows


_Logs = dict[tuple[str, str], NDArray[np.float64]]
"""Logarithms of times by figure and variant, one per repeat."""


def _log_ratios(results: Results) -> _Logs:
    """Of a variant's loop time over the baseline's of the same repeat."""
    repeats = complete_repeats(results.runs)
    found = {}
    for variant in results.runs["variant"].unique():
        times = paired(repeats, "denoise_s", str(variant))
        if variant != BASELINE and len(times):
            found[RATIO, str(variant)] = np.log(
                (times[variant] / times[BASELINE]).to_numpy(dtype=float)
            )
    return found


def _log_times(results: Results) -> _Logs:
    """Of every variant's loop time."""
    times = complete_repeats(results.runs)["denoise_s"].dropna()
    return {
        (ABSOLUTE, str(variant)): np.log(group.to_numpy(dtype=float))
        for variant, group in times.groupby("variant")
    }


@dataclass(frozen=True)
class _Test:
    """Welch's test of one variant's log-ratios in two runs."""

    change: float
    lo: float
    hi: float
    p: float
    needed: int | None
    spread: float

    @classmethod
    def of(cls, before: NDArray[np.float64], after: NDArray[np.float64], limits: Limits) -> "_Test":
        sizes = len(before), len(after)
        if min(sizes) == 0:
            return cls(math.nan, math.nan, math.nan, math.nan, None, 0.0)
        change = float(after.mean() - before.mean())
        if min(sizes) < 2:
            return cls(change, math.nan, math.nan, 1.0, None, 0.0)
        spread = float(np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / 2))
        if spread == 0:
            return cls(change, change, change, 0.0 if change else 1.0, None, 0.0)
        test = scipy_stats.ttest_ind(after, before, equal_var=False)
        interval = test.confidence_interval(1 - limits.level)
        normal = scipy_stats.norm.ppf([1 - limits.level / 2, limits.power]).sum()
        needed = math.ceil(2 * (normal * spread / math.log1p(limits.threshold)) ** 2)
        return cls(
            change, float(interval.low), float(interval.high), float(test.pvalue), needed, spread
        )

    def verdict(self, p: float, limits: Limits) -> str:
        if math.isnan(self.change):
            return "missing"
        matters = math.log1p(limits.threshold)
        if p < limits.level and abs(self.change) > matters:
            return "regression" if self.change > 0 else "improvement"
        return "same" if self.hi <= matters else "undecided"


def _holm(p: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Holm's corrected p-values."""
    order = sorted((name for name in p if not math.isnan(p[name])), key=p.__getitem__)
    corrected, highest = dict.fromkeys(p, math.nan), 0.0
    for index, name in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - index) * p[name]))
        corrected[name] = highest
    return corrected


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
        "repeats_needed": None,
        "unstable": "",
    }
