import numpy as np
import pytest
from scipy.stats import binom, binomtest

from sdbench.analysis.perception.exact import (
    CHANCE,
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
    assert above_chance(right, trials) == pytest.approx(min(1, 2 * one_sided))
    assert (above_chance(right, trials) < 0.05) == (lo > 0.5)


def test_dprime_of_two_alternatives():
    """Known to every textbook: d' = 1 is 76 % in a two-alternative forced choice."""
    assert dprime([0.76], "reference") == pytest.approx([1.00], abs=0.005)


@pytest.mark.parametrize("d", [0.5, 1.0, 2.0])
def test_the_share_of_abx_is_that_of_noise(d):
    """X, A and B are seen with noise; the nearer one to X is chosen."""
    at_x, at_a, at_b = np.random.default_rng(0).standard_normal((3, 400_000))
    right = np.abs(at_a - at_x) < np.abs(at_b + d - at_x)
    assert share_of(d, "abx") == pytest.approx(right.mean(), abs=0.003)


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


@pytest.mark.parametrize("trials", [6, 24, 48, 480])
def test_the_detectable_share_is_found_with_the_power(trials):
    needed = least_right(trials)
    assert above_chance(needed, trials) < 0.05 <= above_chance(needed - 1, trials)
    assert power_of(detectable(trials), trials) == pytest.approx(0.8)


def test_too_few_trials_find_nothing():
    assert np.isnan(detectable(5))


def test_no_exact_interval_of_48_answers_is_nearer_to_95_percent_for_a_blind_observer():
    """Which numbers of right answers an interval of 95 % has to take in at one half."""
    lo, hi = exact_ends(np.arange(49), np.full(49, 48))
    held = np.flatnonzero((lo <= CHANCE) & (hi >= CHANCE))
    assert held.tolist() == list(range(17, 32))
    chances = binom.pmf(held, 48, CHANCE)
    assert chances.sum() == pytest.approx(0.9707, abs=1e-4)

    # Without both ends, as too many and too few count alike, it holds too seldom.
    assert chances[1:-1].sum() == pytest.approx(0.9405, abs=1e-4)
