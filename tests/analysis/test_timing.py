import math

import numpy as np

from sdbench.analysis.timing import USUAL, TimeTest

RUN = np.log([1.0, 1.01, 0.99, 1.0])


def test_a_run_without_repeats_is_missing_and_one_repeat_decides_nothing():
    missing = TimeTest.of(RUN, np.array([]), USUAL)
    single = TimeTest.of(RUN, RUN[:1] + 1, USUAL)
    assert (missing.verdict(math.nan, USUAL), single.verdict(single.p, USUAL)) == (
        "missing",
        "undecided",
    )


def test_a_change_counts_where_it_is_clear_and_large():
    slower = TimeTest.of(RUN, RUN + 0.1, USUAL)
    faster = TimeTest.of(RUN, RUN - 0.1, USUAL)
    assert [test.verdict(test.p, USUAL) for test in (slower, faster)] == [
        "regression",
        "improvement",
    ]
