"""Whether a time changed: tests of the logarithms of times, all variants together.

Times are compared as ratios to the baseline variant within each run, so that a slower machine is
no regression. Which other figures are compared is in `regression.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from sdbench.analysis.repeats import complete_repeats, ratios
from sdbench.records.names import BASELINE
from sdbench.records.store import Results

RATIO = f"time ratio to {BASELINE}"
ABSOLUTE = "time of the loop"
TAILS = 3.0  # excess kurtosis of the noise for which repeats are planned: Laplace's

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """When a change of time counts.

    Args:
        level: of the tests, over all times together (Holm).
        threshold: the smallest slowdown that matters, relative. One of this size is told from none
            at all; `verdicts` says how.
        power: with which a slowdown of the threshold's size is found, for the number of repeats
            that would decide.
    """

    level: float = 0.05
    threshold: float = 0.03
    power: float = 0.8

    @property
    def matters(self) -> float:
        """Logarithm of the ratio of times at the threshold."""
        return math.log1p(self.threshold)


USUAL = Limits()

Logs = dict[tuple[str, str], Array]
"""Logarithms of times by figure and variant, one per repeat."""


def log_ratios(results: Results) -> Logs:
    """Of a variant's loop time over the baseline's beside which it was timed."""
    shares = ratios(complete_repeats(results), "denoise_s")
    logs: Logs = {}
    for variant in results.runs["variant"].unique():
        if variant != BASELINE and variant in shares and shares[variant].notna().any():
            times = shares[variant].dropna().to_numpy(dtype=float)
            logs[RATIO, str(variant)] = np.log(times)
    return logs


def log_times(results: Results) -> Logs:
    """Of every variant's loop time."""
    times = complete_repeats(results)["denoise_s"].dropna()
    return {
        (ABSOLUTE, str(variant)): np.log(group.to_numpy(dtype=float))
        for variant, group in times.groupby("variant", observed=True)
    }


class TimeTests(NamedTuple):
    """Welch's tests of log-ratios in two runs; every array has one entry per test.

    Attributes:
        change: mean of the later run less that of the earlier; NaN where a run has no repeat.
        lo: lower end of the change's interval, of this test alone; NaN below two repeats.
        hi: its upper end.
        p: two-sided, not corrected; NaN where nothing could be tested.
        error: standard error of the change.
        spread: standard deviation of one repeat, over both runs.
        freedom: Welch's degrees of freedom.
    """

    change: Array
    lo: Array
    hi: Array
    p: Array
    error: Array
    spread: Array
    freedom: Array


def time_tests(before: Logs, after: Logs, limits: Limits = USUAL) -> TimeTests:
    """The tests of two runs, in the order of the earlier one's figures and variants."""
    nothing = np.array([])
    tests = [_time_test(logs, after.get(key, nothing), limits) for key, logs in before.items()]
    return TimeTests(*(np.array([test[i] for test in tests]) for i in range(7)))


def _time_test(before: Array, after: Array, limits: Limits) -> TimeTests:
    """One test; a run of a single repeat shows nothing, and one without any is missing."""
    fewest = min(len(before), len(after))
    if fewest == 0:
        return _exact(math.nan, lo=math.nan, p=math.nan)
    change = float(after.mean() - before.mean())
    if fewest < 2:
        return _exact(change, lo=math.nan, p=math.nan)

    # Equal times, as a fake clock gives them, have no spread to test against.
    if np.ptp(before) == 0 and np.ptp(after) == 0:
        return _exact(change, lo=change, p=0.0 if change else 1.0)
    return welch(before, after, limits)


def _exact(change: float, *, lo: float, p: float) -> TimeTests:
    """A test without a spread."""
    return TimeTests(*map(np.array, (change, lo, lo, p, 0.0, 0.0, math.inf)))


def welch(before: Array, after: Array, limits: Limits = USUAL) -> TimeTests:
    """Welch's test of any number of pairs of runs: ... repeats, ... repeats => ...

    The runs may differ in their repeats; every one has at least two, that are not all equal.
    """
    test = scipy_stats.ttest_ind(after, before, axis=-1, equal_var=False)
    interval = test.confidence_interval(1 - limits.level)
    variances = [logs.var(axis=-1, ddof=1) for logs in (before, after)]
    return TimeTests(
        change=after.mean(axis=-1) - before.mean(axis=-1),
        lo=interval.low,
        hi=interval.high,
        p=test.pvalue,
        error=np.sqrt(variances[0] / before.shape[-1] + variances[1] / after.shape[-1]),
        spread=np.sqrt((variances[0] + variances[1]) / 2),
        freedom=test.df,
    )


def verdicts(tests: TimeTests, limits: Limits = USUAL) -> NDArray[np.str_]:
    """What tests say of times that are judged together: ... tests => ... tests.

    An interval that holds both no change and the threshold says nothing. One that ends below the
    threshold rules out a slowdown that matters. One that reaches it and lies above no change, with
    Holm's level over all tests, shows a slowdown, which may matter. So a slowdown of the
    threshold's size is found as surely as repeats allow, none is found in `1 - level` of runs
    without any change, and what is found is more than half of the threshold.

    Returns:
        "regression", "improvement", "same" (no slower by the threshold), "undecided" or "missing".
    """
    clear = corrected(tests.p) < limits.level
    slower = clear & (tests.change > 0) & (tests.hi > limits.matters)
    faster = clear & (tests.change < 0) & (tests.lo < -limits.matters)
    return np.select(
        [np.isnan(tests.change), slower, faster, tests.hi <= limits.matters],
        ["missing", "regression", "improvement", "same"],
        "undecided",
    )


def repeats_needed(spread: float, freedom: float, number: int, limits: Limits = USUAL) -> int:
    """Repeats of each run that find a slowdown of the threshold's size with the stated power.

    Args:
        spread: standard deviation of the logarithm of one repeat's ratio.
        freedom: degrees of freedom from which the spread is known; infinite where it is given.
        number: of tests that are judged together. One of them is slower; Holm's strictest level is
            what it then has to pass.
        limits: threshold, level and power.
    """

    def enough(final: float) -> float:
        reach = _reach(freedom, final, number, limits)
        return 2 * (reach * spread / limits.matters) ** 2

    # Fewer repeats also know their own spread less well, so the search goes up from the least.
    repeats = max(2, math.ceil(enough(math.inf)))
    while repeats < enough(2 * repeats - 2):
        repeats += 1
    return repeats


def detectable(error: float, freedom: float, number: int, limits: Limits = USUAL) -> float:
    """The smallest slowdown, relative, that these repeats find with the stated power.

    Args:
        error: standard error of the change.
        freedom: degrees of freedom from which it is known.
        number: of tests that are judged together, as for `repeats_needed`.
        limits: level and power.
    """
    with np.errstate(over="ignore"):  # what no slowdown exceeds is infinite
        return float(np.expm1(error * _reach(freedom, freedom, number, limits)))


def _reach(freedom: float, final: float, number: int, limits: Limits) -> float:
    """True change, in standard errors as they are known now, that a test finds with the power.

    A few repeats know a spread badly, and worse where the noise has heavy tails: its degrees of
    freedom shrink with the kurtosis. What the error will really be is then the known one divided by
    a chi; the change that exceeds a quantile of the test with the power is a quantile of the
    noncentral t.

    Source: Johnson and Welch 1940, Biometrika 31(3/4), 362-389 (the noncentral t, and the normal
        form of a studentised difference); O'Neill 2014, The American Statistician 68(4), 282-296
        (degrees of freedom under kurtosis).
    """
    critical = scipy_stats.t.isf(limits.level / 2 / number, final)
    wobble = math.hypot(1, critical / math.sqrt(2 * final))
    known = freedom / (1 + TAILS / 2)
    return float(wobble * scipy_stats.nct.ppf(limits.power, known, critical / wobble))


def corrected(p: Array) -> Array:
    """Holm's corrected p-values of tests that are judged together: ... tests => ... tests.

    What could not be tested (NaN) stays so, and does not count.

    Source: Holm 1979, Scandinavian Journal of Statistics 6(2), 65-70.
    """
    order = np.argsort(p, axis=-1)  # NaN comes last
    left = (~np.isnan(p)).sum(axis=-1, keepdims=True) - np.arange(p.shape[-1])
    stepped = np.maximum.accumulate(left * np.take_along_axis(p, order, axis=-1), axis=-1)
    result = np.empty_like(p)
    np.put_along_axis(result, order, np.minimum(stepped, 1), axis=-1)
    return result


def holm(p: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Holm's corrected p-values by name."""
    return dict(zip(p, corrected(np.array(list(p.values()))).tolist(), strict=True))
