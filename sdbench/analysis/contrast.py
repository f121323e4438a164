"""Two variants against each other, pair by pair: whether they differ, or are the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from sdbench.analysis.draws import over_draws
from sdbench.analysis.paired_tests import LEVEL, clear_tests, slower_tests
from sdbench.analysis.pairs import BETTER, NEARER, UNDECIDED, pair_median, paired_verdict
from sdbench.analysis.repeats import complete_repeats, ratios
from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.analysis.stats import Interval, bounded_mean, ratio_interval
from sdbench.records.metrics import scale_of
from sdbench.records.store import Results

TWO_ONE_SIDED = 0.90
"""Coverage of the interval that holds the difference in a test of equivalence at 5 %."""


@dataclass(frozen=True)
class Contrast:
    """What the pairs of two variants say of the first.

    Attributes:
        metric: that was compared.
        pairs: that both have.
        prompts: of these pairs.
        difference: mean of the first less the second, with its 95 % interval.
        median: of the differences, likewise.
        better: share of the pairs in which the first is better, among those that differ, likewise.
        p: two-sided sign-flip test of the mean; of a metric that compares with the baseline the
            larger of this one and the sign test's.
        verdict: on the difference, as `paired_verdict` words it.
        margin: within which a difference does not matter; None where none was given.
        within: whether the difference was shown to lie within the margin.
    """

    metric: str
    pairs: int
    prompts: int
    difference: Interval
    median: Interval
    better: Interval
    p: float
    verdict: str
    margin: float | None
    within: bool

    def sentence(self, first: str, second: str) -> str:
        """The outcome in words, with its figures."""
        word = BETTER[0] if self.metric in WITHOUT_REFERENCE else NEARER[0]
        told = f"{first} against {second} in {self.metric}: {self.verdict}"
        if self.margin is not None:
            shown = "shown" if self.within else "not shown"
            told += f"; equivalence within {self.margin:g} {shown}"
        return (
            f"{told}. Mean difference {_text(self.difference)}, median {_text(self.median)}, "
            f"{word} in {_percent(self.better)} of the pairs that differ; {_p(self.p)} by sign "
            f"flips; pairs: {self.pairs}, prompts: {self.prompts}."
        )


def contrast(
    values: pd.DataFrame,
    metric: str,
    *,
    margin: float | None = None,
    images: pd.Series[float] | None = None,
) -> Contrast:
    """Compare two variants pair by pair.

    The test of equivalence is two one-sided tests: the 90 % interval of the mean difference has to
    lie within the margin. It is that of `bounded_mean`, so that rare images which were not drawn
    have their place in it.

    Args:
        values: the columns `first` and `second` by pair, as `shared_pairs` returns them.
        metric: what they are of.
        margin: the largest difference of means that does not matter, in the metric's unit.
        images: as `image_differences` returns them: where a variant is the mean over several draws,
            the difference has to be clear over masks as well.

    Raises:
        ValueError: a margin that is not positive.

    Source: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15(6).
    """
    if margin is not None and not margin > 0:
        raise ValueError(f"the margin must be a positive difference of the metric, not {margin:g}")
    scale = scale_of(metric)
    compares = metric not in WITHOUT_REFERENCE
    difference = values["first"] - values["second"]
    sign = -1 if scale.higher_is_better else 1
    loss = sign * difference
    prompts = difference.index.get_level_values("prompt_id").astype(str)

    tests = clear_tests(loss.to_numpy(dtype=float)[:, None], prompts, most=compares)
    p = min(1.0, 2 * float(min(tests.above.item(), tests.below.item())))
    by_image = None if images is None else sign * images
    words = NEARER if compares else BETTER
    told = paired_verdict(loss, metric, words=words, images=by_image)

    within = False
    if margin is not None:
        narrow = bounded_mean(difference, prompts, bounds=scale.differences, level=TWO_ONE_SIDED)
        if images is not None:
            narrow = over_draws(narrow, images, scale.differences, level=TWO_ONE_SIDED)
        within = -margin < narrow.lo and narrow.hi < margin
    return Contrast(
        metric=metric,
        pairs=len(difference),
        prompts=prompts.nunique(),
        difference=told.mean.negated() if scale.higher_is_better else told.mean,
        median=pair_median(difference),
        better=told.better,
        p=max(p, _p_of_masks(images)),
        verdict=told.verdict,
        margin=margin,
        within=bool(within),
    )


def _p_of_masks(images: pd.Series[float] | None) -> float:
    """Two-sided t test over the means of draws; 0 where there are none to sample."""
    if images is None:
        return 0.0
    means = images.groupby("draw").mean()
    return float(stats.ttest_1samp(means, 0).pvalue) if len(means.unique()) > 1 else 0.0


@dataclass(frozen=True)
class TimeContrast:
    """What the repeats of two variants say of the first's time.

    Attributes:
        ratio: of the first's time to the second's, geometric mean with its 95 % interval.
        repeats: that both have.
        p: two-sided t test of the log-ratios.
        verdict: "faster", "slower" or "undecided".
    """

    ratio: Interval
    repeats: int
    p: float
    verdict: str

    def sentence(self, first: str, second: str) -> str:
        """The outcome in words, with its figures."""
        estimate, lo, hi = (f"{end:.3f}" for end in self.ratio)
        interval = "" if np.isnan(self.ratio.lo) else f" [{lo}, {hi}]"
        return (
            f"{first} against {second} in time: {self.verdict}. {estimate}{interval} times its "
            f"time; {_p(self.p)}; {self.repeats} repeats."
        )


def time_contrast(results: Results, first: str, second: str, column: str) -> TimeContrast:
    """Compare the times of two variants of a study, each over that of its own baseline's call.

    Args:
        results: of the study.
        first: a variant.
        second: another one.
        column: `denoise_s` (the loop) or `latency_s` (the call).

    Raises:
        ValueError: a variant has no repeat that all of its batches finished.
    """
    times = ratios(complete_repeats(results), column)
    for name in (first, second):
        if name not in times:
            raise ValueError(f"{results.folder}: '{name}' was not timed in every batch")
    both = times[[first, second]].dropna()
    slower = slower_tests(np.log(both.to_numpy(dtype=float)))
    p = min(1.0, 2 * float(min(slower[0, 1], slower[1, 0])))
    found = "faster" if slower[1, 0] < slower[0, 1] else "slower"
    return TimeContrast(
        ratio=ratio_interval(both[first], both[second]),
        repeats=len(both),
        p=p,
        verdict=found if p < LEVEL else UNDECIDED,
    )


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _text(interval: Interval) -> str:
    estimate, lo, hi = (f"{end:+.4f}" for end in interval)
    return estimate if np.isnan(interval.lo) else f"{estimate} [{lo}, {hi}]"


def _percent(interval: Interval) -> str:
    if np.isnan(interval.estimate):
        return "none"
    estimate, lo, hi = (f"{100 * end:.0f}" for end in interval)
    return f"{estimate} %" if np.isnan(interval.lo) else f"{estimate} % [{lo}, {hi}]"
