import numpy as np
import pytest
from scipy.stats import binomtest

from sdbench.analysis.perception.exact import (
    above_chance,
    detectable,
    dprime,
    exact_ends,
    least_right,
    noticed,
    power_of,
    share_of,
)


@pytest.mark.parametrize(("right", "trials"), [(0, 6), (6, 6), (30, 48), (7, 13)])
def test_ends_and_p_are_those_of_scipy(right, trials):
    oracle = binomtest(right, trials, 0.5)
    lo, hi = exact_ends(right, trials)
    assert (lo, hi) == pytest.approx(tuple(oracle.proportion_ci(0.95, "exact")))
    one_sided = binomtest(right, trials, 0.5, alternative="greater").pvalue
    assert above_chance(right, trials) == pytest.approx(one_sided)


def test_dprime_is_that_of_the_table():
    """Macmillan and Creelman 2005, tables A5.2 and A5.3: 2AFC, and ABX by differencing."""
    assert dprime([0.76], "reference") == pytest.approx([1.00], abs=0.005)
    assert dprime([0.92], "reference") == pytest.approx([1.99], abs=0.005)
    assert share_of(1.0, "abx") == pytest.approx(0.582, abs=0.001)
    assert share_of(2.0, "abx") == pytest.approx(0.750, abs=0.02)


@pytest.mark.parametrize("mode", ["reference", "abx"])
def test_dprime_and_share_are_inverse(mode):
    d = np.array([0.0, 0.3, 1.0, 2.5, 4.0])
    assert dprime(share_of(d, mode), mode) == pytest.approx(d, abs=1e-6)


@pytest.mark.parametrize("mode", ["reference", "abx"])
def test_the_ends_of_dprime_are_infinite_and_zero(mode):
    assert dprime([1.0, 0.5, 0.2], mode).tolist() == [np.inf, 0.0, 0.0]


def test_preference_has_no_dprime():
    with pytest.raises(ValueError, match="no right answers"):
        dprime([0.7], "preference")


def test_what_is_noticed_is_corrected_for_guessing():
    assert noticed([0.4, 0.5, 0.75, 1.0]).tolist() == [0, 0, 0.5, 1]


@pytest.mark.parametrize("trials", [5, 24, 48, 480])
def test_the_detectable_share_is_found_with_the_power(trials):
    needed = least_right(trials)
    assert above_chance(needed, trials) < 0.05 <= above_chance(needed - 1, trials)
    assert power_of(detectable(trials), trials) == pytest.approx(0.8)


def test_too_few_trials_find_nothing():
    assert np.isnan(detectable(4))
