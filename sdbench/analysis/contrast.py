"""Two variants against each other, pair by pair: whether they differ, or are the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from sdbench.analysis.paired_tests import clear_tests
from sdbench.analysis.pairs import BETTER, NEARER, pair_median, paired_verdict
from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.analysis.stats import Interval, bounded_mean
from sdbench.records.metrics import scale_of

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
        p = "< 0.001" if self.p < 0.001 else f"= {self.p:.3f}"
        return (
            f"{told}. Mean difference {_text(self.difference)}, median {_text(self.median)}, "
            f"{word} in {_percent(self.better)} of the pairs that differ; p {p}; "
            f"{self.pairs} pairs of {self.prompts} prompts."
        )


def contrast(values: pd.DataFrame, metric: str, *, margin: float | None = None) -> Contrast:
    """Compare two variants pair by pair.

    The test of equivalence is two one-sided tests: the 90 % interval of the mean difference has to
    lie within the margin. It is that of `bounded_mean`, so that rare images which were not drawn
    have their place in it.

    Args:
        values: the columns `first` and `second` by pair, as `shared_pairs` returns them.
        metric: what they are of.
        margin: the largest difference of means that does not matter, in the metric's unit.

    Raises:
        ValueError: a margin that is not positive.

    Source: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15(6).
    """
    if margin is not None and not margin > 0:
        raise ValueError(f"a margin is a positive difference of the metric, not {margin:g}")
    scale = scale_of(metric)
    compares = metric not in WITHOUT_REFERENCE
    difference = values["first"] - values["second"]
    loss = -difference if scale.higher_is_better else difference
    prompts = difference.index.get_level_values("prompt_id").astype(str)

    tests = clear_tests(loss.to_numpy(dtype=float)[:, None], prompts, most=compares)
    told = paired_verdict(loss, metric, words=NEARER if compares else BETTER)
    turned = Interval(-told.mean.estimate, -told.mean.hi, -told.mean.lo)

    within = False
    if margin is not None:
        lo, hi = bounded_mean(difference, prompts, bounds=scale.differences, level=TWO_ONE_SIDED)[
            1:
        ]
        within = -margin < lo and hi < margin
    return Contrast(
        metric=metric,
        pairs=len(difference),
        prompts=prompts.nunique(),
        difference=turned if scale.higher_is_better else told.mean,
        median=pair_median(difference),
        better=told.better,
        p=min(1.0, 2 * float(min(tests.above.item(), tests.below.item()))),
        verdict=told.verdict,
        margin=margin,
        within=bool(within),
    )


def _text(interval: Interval) -> str:
    estimate, lo, hi = (f"{end:+.4f}" for end in interval)
    return estimate if np.isnan(interval.lo) else f"{estimate} [{lo}, {hi}]"


def _percent(interval: Interval) -> str:
    if np.isnan(interval.estimate):
        return "none"
    estimate, lo, hi = (f"{100 * end:.0f}" for end in interval)
    return f"{estimate} %" if np.isnan(interval.lo) else f"{estimate} % [{lo}, {hi}]"
