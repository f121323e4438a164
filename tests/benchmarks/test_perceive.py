"""A blind test judges simulated observers of known acuity rightly: coverage, errors, power."""

import numpy as np
import pytest

from benchmarks.observers import Observer, right_answers
from benchmarks.perceive import (
    blind_detections,
    detected,
    mixed_coverage,
    score_coverage,
    share_coverage,
    threshold_coverage,
    true_share,
)
from sdbench.analysis.perception.exact import power_of, share_of

LEAST, MOST = 0.93, 0.97


@pytest.mark.parametrize("mode", ["reference", "abx"])
@pytest.mark.parametrize("lapse", [0.0, 0.1])
def test_an_observer_is_right_as_often_as_theory_says(mode, lapse):
    observer = Observer(lapse=lapse)
    right = right_answers(np.full(200_000, 1.2), mode, observer, np.random.default_rng(0))
    assert right.mean() == pytest.approx(true_share(1.2, mode, observer), abs=0.004)


def test_who_likes_a_side_is_right_less_often_and_never_below_chance():
    generator = np.random.default_rng(0)
    shares = [
        right_answers(np.full(100_000, 1.0), "reference", Observer(bias=bias), generator).mean()
        for bias in (0.0, 1.0, 50.0)
    ]
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("mode", ["reference", "abx"])
@pytest.mark.parametrize(("d", "lapse"), [(0.5, 0.0), (1.0, 0.05), (2.0, 0.02)])
def test_intervals_of_shares_and_of_dprime_hold(mode, d, lapse):
    """Of 6 people with 48 trials each; of fewer answers an exact interval holds more often."""
    held = share_coverage(mode, d, lapse, trials=288, experiments=10_000)
    assert all(LEAST <= one <= MOST for one in held)


@pytest.mark.parametrize("bias", [0.0, 1.0, 3.0])
def test_a_blind_observer_is_rarely_called_seeing(bias):
    """Whatever the observer likes, as a coin chose the sides."""
    observer = Observer(bias=bias)
    assert blind_detections(observer, trials=144, variants=2, experiments=5000) <= 0.05


def test_the_power_at_a_dprime_of_1_and_48_trials():
    """As the guide states it: 95 % by the reference, 15 % by ABX."""
    powers = [power_of(float(share_of(1.0, mode)), 48) for mode in ("reference", "abx")]
    assert powers == pytest.approx([0.950, 0.150], abs=0.001)


def test_intervals_of_the_other_figures_hold_in_a_few_experiments():
    assert mixed_coverage(8, 16, (0.5, 0.5), experiments=40) >= 0.85
    assert threshold_coverage(6, spread=(0.3, 0.5), experiments=10) >= 0.8
    assert score_coverage(answers=60, experiments=100) >= 0.9


@pytest.mark.slow
def test_of_500_blind_experiments_at_most_5_percent_detect():
    """Whole experiments, with catch trials; the observers like A."""
    some, _ = detected({"a": 0.0, "b": 0.0}, [Observer(bias=1.0)] * 6)
    assert some <= 0.05


@pytest.mark.slow
def test_an_observer_of_dprime_1_is_found_as_often_as_the_power_says():
    _, found = detected({"a": 1.0}, [Observer()], experiments=300)
    assert found == pytest.approx(0.950, abs=0.04)


@pytest.mark.slow
def test_intervals_of_the_mixed_model_hold():
    """Where people and pairs differ; where they do not, it holds more often."""
    assert LEAST <= mixed_coverage(12, 24, (0.7, 0.7), experiments=200) <= 0.98


@pytest.mark.slow
def test_intervals_of_the_threshold_hold():
    held = threshold_coverage(12, spread=(0.3, 0.5), experiments=40)
    assert 0.88 <= held <= 1


@pytest.mark.slow
def test_intervals_of_scores_hold():
    assert LEAST <= score_coverage(answers=96, experiments=1000) <= MOST
