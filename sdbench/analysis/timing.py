"""Whether a time changed: tests of the logarithms of times, all variants together.

Times are compared as ratios to the baseline variant within each run, so that a slower machine is
no regression. Which other figures are compared is in `regression.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from sdbench.analysis.calls import complete_repeats, paired
from sdbench.records.names import BASELINE
from sdbench.records.store import Results

RATIO = f"time ratio to {BASELINE}"
ABSOLUTE = "time of the loop"


@dataclass(frozen=True)
class Limits:
    """When a change of time counts.

    Args:
        level: of the test, over all variants together (Holm).
        threshold: the smallest change that matters, relative.
        power: with which a change of the threshold's size would be found, for the number of runs
            that would decide.
    """

    level: float = 0.05
    threshold: float = 0.03
    power: float = 0.8


USUAL = Limits()

Logs = dict[tuple[str, str], NDArray[np.float64]]
"""Logarithms of times by figure and variant, one per repeat."""


def log_ratios(results: Results) -> Logs:
    """Of a variant's loop time over the baseline's of the same repeat."""
    repeats = complete_repeats(results.runs)
    logs: Logs = {}
    for variant in results.runs["variant"].unique():
        times = paired(repeats, "denoise_s", str(variant))
        if variant != BASELINE and len(times):
            ratios = times[variant] / times[BASELINE]
            logs[RATIO, str(variant)] = np.log(ratios.to_numpy(dtype=float))
    return logs


def log_times(results: Results) -> Logs:
    """Of every variant's loop time."""
    times = complete_repeats(results.runs)["denoise_s"].dropna()
    return {
        (ABSOLUTE, str(variant)): np.log(group.to_numpy(dtype=float))
        for variant, group in times.groupby("variant")
    }


@dataclass(frozen=True)
class TimeTest:
    """Welch's test of one variant's log-ratios in two runs."""

    change: float
    lo: float
    hi: float
    p: float
    needed: int | None
    spread: float

    @classmethod
    def of(
        cls, before: NDArray[np.float64], after: NDArray[np.float64], limits: Limits
    ) -> "TimeTest":
        """Test two runs; one of a single repeat shows nothing, and one without any is missing."""
        fewest = min(len(before), len(after))
        if fewest == 0:
            return cls(math.nan, math.nan, math.nan, math.nan, None, 0.0)
        change = float(after.mean() - before.mean())
        if fewest < 2:
            return cls(change, math.nan, math.nan, 1.0, None, 0.0)

        # Equal times, as a fake clock gives them, have no spread to test against.
        spread = float(np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / 2))
        if spread == 0:
            return cls(change, change, change, 0.0 if change else 1.0, None, 0.0)

        test = scipy_stats.ttest_ind(after, before, equal_var=False)
        interval = test.confidence_interval(1 - limits.level)

        # Repeats of each run that find a change of the threshold's size: the usual two-sample size.
        normal = scipy_stats.norm.ppf([1 - limits.level / 2, limits.power]).sum()
        needed = math.ceil(2 * (normal * spread / math.log1p(limits.threshold)) ** 2)
        return cls(
            change, float(interval.low), float(interval.high), float(test.pvalue), needed, spread
        )

    def verdict(self, p: float, limits: Limits) -> str:
        """What a corrected p-value says: only what is both clear and large enough counts."""
        if math.isnan(self.change):
            return "missing"
        matters = math.log1p(limits.threshold)
        if p < limits.level and abs(self.change) > matters:
            return "regression" if self.change > 0 else "improvement"
        return "same" if self.hi <= matters else "undecided"


def holm(p: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Holm's corrected p-values."""
    order = sorted((name for name in p if not math.isnan(p[name])), key=p.__getitem__)
    corrected = dict.fromkeys(p, math.nan)
    highest = 0.0
    for index, name in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - index) * p[name]))
        corrected[name] = highest
    return corrected
