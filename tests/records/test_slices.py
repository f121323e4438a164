import numpy as np
import pytest
from scipy import stats

from sdbench.records.slices import by_kind, by_step, held, location, pairs

GUIDED_S, UNGUIDED_S = 0.4, 0.25
MASK = np.array([1, 1, 1, 1, 1, 0, 0, 0])
COST = np.where(MASK, GUIDED_S, UNGUIDED_S)
BASELINE = np.full(8, GUIDED_S)
CACHED = np.array([1.05, 0.4, 0.4] * 4)


def test_slices_of_the_same_progress_are_paired():
    paired = pairs([2.0, 4.0], [1.0, 2.0])
    assert np.exp(paired.logs) == pytest.approx([2, 2])
    assert (paired.steps.tolist(), paired.weights.tolist()) == ([0, 1], [1, 1])


def test_a_slice_meets_those_of_the_baseline_on_both_of_its_sides():
    paired = pairs([2.0, 4.0], [1.0, 1.0, 2.0, 8.0])
    assert np.exp(paired.logs) == pytest.approx([2, 2, 4, 2, 0.5])
    assert paired.steps.tolist() == [0, 0, 1, 1, 1]
    assert paired.weights.tolist() == pytest.approx([1 / 2] * 2 + [1 / 3] * 3)


@pytest.mark.parametrize(("own", "baseline"), [(37, 50), (50, 37), (1, 3), (12, 12), (90, 12)])
def test_every_step_counts_once(own, baseline):
    paired = pairs(np.ones(own), np.ones(baseline))
    assert np.bincount(paired.steps, paired.weights) == pytest.approx(np.ones(own))


def test_a_location_is_the_mean_of_values_without_outliers():
    values = np.random.default_rng(0).uniform(-1, 1, 200)
    assert location(values) == pytest.approx(values.mean(), abs=0.03)
    assert location([1.0, 1.0, 1.0, 9.0]) == 1
    assert location([1.0, 3.0]) == 2
    assert location([5.0]) == 5


def test_a_location_needs_fewer_values_than_a_median_and_no_more_than_a_mean_with_spikes():
    values = np.random.default_rng(0).standard_normal((4000, 25))
    spread = location(values).std()
    assert values.mean(axis=1).std() < spread < 0.9 * np.median(values, axis=1).std()
    values[:, :2] += 50
    assert location(values).std() < 1.3 * spread


def test_a_loop_is_the_sum_of_its_kinds_whatever_the_machine_does():
    speed = np.random.default_rng(0).uniform(0.5, 2, 8)
    assert by_kind(pairs(speed * COST, speed * BASELINE), MASK) * GUIDED_S == pytest.approx(
        COST.sum()
    )


@pytest.mark.parametrize("spiked", ["own", "baseline"])
def test_a_spike_in_a_slice_is_not_the_calls_own(spiked):
    times = {"own": COST.copy(), "baseline": BASELINE.copy()}
    times[spiked][2] *= 30
    paired = pairs(times["own"], times["baseline"])
    assert by_kind(paired, MASK) * GUIDED_S == pytest.approx(COST.sum())


def test_many_calls_are_taken_as_each_alone():
    noise = np.random.default_rng(0).lognormal(sigma=0.1, size=(5, 8))
    together = by_kind(pairs(noise * COST, np.tile(BASELINE, (5, 1))), MASK)
    alone = [by_kind(pairs(row * COST, BASELINE), MASK) for row in noise]
    assert together.tolist() == pytest.approx([float(one) for one in alone])


def test_steps_of_the_same_place_tell_an_accelerators_time():
    speed = np.random.default_rng(0).uniform(0.5, 2, (6, 12))
    own = speed * CACHED
    own[3, 5] *= 30
    speed[1, 0] *= 20
    assert by_step(pairs(own, speed)) == pytest.approx(np.full(6, CACHED.sum()))


def test_the_work_of_an_accelerators_steps_is_known_however_many_steps_the_baseline_has():
    own = np.tile(CACHED, (4, 1))
    assert by_step(pairs(own, np.ones((4, 30)))) == pytest.approx(np.full(4, CACHED.sum()))


def test_pseudo_values_of_calm_calls_spread_as_their_own_noise_does():
    noise = np.random.default_rng(0).lognormal(sigma=0.05, size=(400, 6, 12))
    logs = np.log(by_step(pairs(noise * CACHED, np.ones_like(noise))))
    known = logs.mean(axis=1).std()
    told = np.sqrt((logs.var(axis=1, ddof=1) / 6).mean())
    assert told == pytest.approx(known, rel=0.1)
    assert logs.mean() == pytest.approx(np.log(CACHED.sum()), abs=0.002)


def test_what_is_around_a_loop_is_held_to_what_other_calls_explain():
    values = np.array([0.10, 0.11, 0.12, 0.11, 0.10, 0.9])
    kept = held(values)
    assert kept[:5].tolist() == values[:5].tolist()
    middle = np.median(values)
    reach = 3 * stats.median_abs_deviation(values, scale="normal")
    assert kept[5] == pytest.approx(middle + reach, rel=1e-4)
    assert held([0.0, 0.0]).tolist() == [0, 0]
