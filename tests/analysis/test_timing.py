import math

import numpy as np
import pytest
from scipy import stats

from sdbench.analysis.timing import (
    USUAL,
    Limits,
    TimeTests,
    corrected,
    detectable,
    holm,
    repeats_needed,
    time_tests,
    verdicts,
    welch,
)

RUN = np.log([1.0, 1.01, 0.99, 1.0])


def judged(*intervals, p):
    """Verdicts of changes in the middle of intervals, in percent, with their p-values."""
    lo, hi = np.log1p(np.array(intervals).T / 100)
    rest = dict.fromkeys(("error", "spread", "freedom"), np.ones(len(lo)))
    tests = TimeTests(change=(lo + hi) / 2, lo=lo, hi=hi, p=np.array(p), **rest)
    return verdicts(tests).tolist()


def test_a_run_without_repeats_is_missing_and_one_repeat_decides_nothing():
    keys = [("ratio", name) for name in ("gone", "once", "steady")]
    after = {keys[1]: RUN[:1] + 1, keys[2]: RUN}
    tests = time_tests(dict.fromkeys(keys, RUN), after)
    assert verdicts(tests).tolist() == ["missing", "undecided", "same"]
    assert np.isnan(tests.p).tolist() == [True, True, False]


def test_equal_times_have_no_noise_to_hide_a_change():
    before = {("ratio", str(size)): np.zeros(3) for size in (0.0, 0.02, 0.2, -0.2)}
    after = {key: np.full(3, float(key[1])) for key in before}
    told = verdicts(time_tests(before, after)).tolist()
    assert told == ["same", "same", "regression", "improvement"]


@pytest.mark.parametrize(
    ("interval", "p", "verdict"),
    [
        ((-1, 2.9), 0.5, "same"),  # a slowdown of 3 % is ruled out
        ((0.5, 2.5), 0.001, "same"),  # slower, but not by what matters
        ((0.5, 5.5), 0.01, "regression"),
        ((2.9, 3.1), 0.0001, "regression"),  # of exactly the threshold's size
        ((0.1, 5.9), 0.049, "regression"),
        ((-0.1, 6), 0.06, "undecided"),
        ((-9, -4), 0.001, "improvement"),
        ((-2.5, -0.5), 0.001, "same"),
        ((-9, 2), 0.2, "same"),
        ((-9, 9), 0.9, "undecided"),
    ],
)
def test_an_interval_with_both_no_change_and_the_threshold_decides_nothing(interval, p, verdict):
    assert judged(interval, p=[p]) == [verdict]


def test_a_change_has_to_be_clear_among_all_that_are_judged_together():
    assert judged((0.2, 6), p=[0.03]) == ["regression"]
    assert judged((0.2, 6), (-1, 1), p=[0.03, 0.8]) == ["undecided", "same"]


def test_corrected_p_values_are_holms():
    p = np.array([[0.01, 0.04, 0.03, 0.005], [0.5, math.nan, 0.02, 0.9]])
    expected = [[0.03, 0.06, 0.06, 0.02], [1.0, math.nan, 0.06, 1.0]]
    np.testing.assert_allclose(corrected(p), expected)
    assert holm({("a", "b"): 0.02, ("a", "c"): 0.6}) == {("a", "b"): 0.04, ("a", "c"): 0.6}


def test_many_tests_at_once_are_scipys_one_by_one():
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=(3, 2, 6)), generator.normal(0.1, 2, size=(3, 2, 9))
    tests = welch(before, after)
    expected = stats.ttest_ind(after[1, 1], before[1, 1], equal_var=False)
    one = [values[1, 1] for values in tests]
    assert one[3] == pytest.approx(expected.pvalue)
    assert tuple(one[1:3]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert one[4] == pytest.approx(one[0] / expected.statistic)
    assert one[6] == pytest.approx(expected.df)


def test_of_a_known_spread_the_repeats_are_those_of_the_usual_two_sample_size():
    quantiles = stats.norm.isf(0.05 / 2 / 5) + stats.norm.ppf(0.8)
    usual = 2 * (quantiles * 0.127 / math.log1p(0.03)) ** 2
    assert 0 <= repeats_needed(0.127, math.inf, 5) - usual < 5


def test_more_repeats_are_needed_for_more_variants_power_and_doubt_about_the_spread():
    usual = repeats_needed(0.05, 18, 5)
    assert repeats_needed(0.05, 18, 10) > usual
    assert repeats_needed(0.05, 18, 5, Limits(power=0.9)) > usual
    assert repeats_needed(0.05, 6, 5) > usual > repeats_needed(0.05, math.inf, 5)
    assert repeats_needed(0.05, 18, 5, Limits(threshold=0.1)) < usual / 7


def test_what_is_detectable_is_the_threshold_for_which_the_repeats_would_do():
    freedom = 2 * 40 - 2
    smallest = detectable(0.05 * math.sqrt(2 / 40), freedom, 5)
    known = {
        threshold: repeats_needed(0.05, freedom, 5, Limits(threshold=threshold))
        for threshold in (0.99 * smallest, 1.01 * smallest)
    }
    assert list(known.values()) == [pytest.approx(41, abs=1), pytest.approx(39, abs=1)]


def test_noise_beyond_all_measure_hides_any_slowdown():
    assert detectable(200.0, 5, 5) == math.inf


def test_usual_limits_are_three_percent_at_one_in_twenty():
    assert (USUAL.threshold, USUAL.level, USUAL.power) == (0.03, 0.05, 0.8)
