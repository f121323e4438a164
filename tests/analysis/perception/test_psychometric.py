import numpy as np
import pytest

from sdbench.analysis.perception.psychometric import (
    binned,
    foretelling,
    psychometric,
    weibull,
)


def drawn(answers, *, threshold=0.01, slope=1.5, lapse=0.0, seed=0):
    generator = np.random.default_rng(seed)
    distance = np.resize(np.exp(generator.normal(np.log(0.01), 1.2, 48)), answers)
    seen = weibull(distance, threshold, slope)
    return distance, generator.random(answers) < 0.5 + 0.5 * (1 - lapse) * seen


def test_the_curve_is_half_at_its_threshold_and_nothing_at_0():
    assert weibull(np.array([0.0, 0.02, 10.0]), 0.02, 2.0) == pytest.approx([0, 0.5, 1])


def test_a_known_threshold_is_found():
    curve = psychometric(*drawn(4800))
    assert curve.threshold == pytest.approx(0.01, rel=0.1)
    assert curve.slope == pytest.approx(1.5, rel=0.2)
    assert curve.lo < 0.01 < curve.hi
    assert curve.right(curve.threshold) == pytest.approx(0.5 + 0.25 * (1 - curve.lapse))


def test_lapses_do_not_move_the_threshold():
    curve = psychometric(*drawn(9600, lapse=0.06))
    assert curve.threshold == pytest.approx(0.01, rel=0.15)
    assert curve.lapse == pytest.approx(0.06, abs=0.03)


def test_people_who_differ_make_the_interval_wider():
    distance, right = drawn(576)
    person = np.repeat(np.arange(12), 48)
    image = np.tile(np.arange(48), 12)
    alone, grouped = psychometric(distance, right), psychometric(distance, right, (person, image))
    assert alone.threshold == grouped.threshold
    assert grouped.hi / grouped.lo >= alone.hi / alone.lo


def test_a_blind_observer_has_an_open_end():
    generator = np.random.default_rng(1)
    distance = np.resize(np.geomspace(0.001, 0.1, 48), 480)
    curve = psychometric(distance, generator.random(480) < 0.5)
    assert curve.hi == np.inf


def test_few_answers_have_no_curve():
    assert psychometric(np.zeros(50), np.ones(50)) is None
    assert psychometric(np.ones(9), np.ones(9)) is None


def test_foretelling_counts_pairs():
    """Two right answers and two wrong ones: three pairs in order, one tie."""
    assert foretelling([3, 2, 2, 1], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert np.isnan(foretelling([1, 2], [True, True]))


def test_groups_hold_all_answers():
    distance, right = drawn(480)
    found = binned(distance, right)
    assert found["trials"].sum() == 480
    assert found["right"].sum() == right.sum()
    assert found["distance"].is_monotonic_increasing
