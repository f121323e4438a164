"""Repeats end where intervals are narrow, and the intervals still cover what they state."""

import math

import numpy as np
import pytest
from scipy import stats

from sdbench.records.stopping import (
    CORRECTED,
    LOOKS,
    further,
    half_width,
    level,
    looks,
    precision,
    widest,
)

RUNS = 20_000


def coverage(spread, variants, at, shared=0.5, runs=RUNS):
    """Share of runs whose printed intervals hold the truth, where they end by the widest one.

    Args:
        spread: standard deviation of a repeat, in half widths that are asked for.
        variants: how many are judged together.
        at: level of the intervals.
        shared: part of the variance that the baseline brings to all variants.
        runs: simulated.
    """
    random = np.random.default_rng(round(1000 * spread) + variants)
    noise = math.sqrt(1 - shared) * random.standard_normal((runs, LOOKS[-1], variants))
    noise += math.sqrt(shared) * random.standard_normal((runs, LOOKS[-1], 1))
    covered = np.zeros((runs, variants), dtype=bool)
    ended = np.zeros(runs, dtype=bool)
    for look in LOOKS:
        seen = spread * noise[:, :look]
        reach = stats.t.ppf((1 + at) / 2, look - 1) * seen.std(axis=1, ddof=1) / math.sqrt(look)
        ends = ~ended & ((reach.max(axis=1) <= 1) | (look == LOOKS[-1]))
        covered[ends] = np.abs(seen.mean(axis=1)[ends]) <= reach[ends]
        ended |= ends
    return float(covered.mean())


@pytest.mark.parametrize("variants", [1, 4])
@pytest.mark.parametrize("spread", [0.3, 1.3, 1.7, 2.0, 5.0])
def test_intervals_cover_what_they_state_whenever_repeats_end(spread, variants):
    assert 0.945 < coverage(spread, variants, CORRECTED) < 0.97


def test_uncorrected_intervals_would_cover_too_little():
    assert coverage(1.7, 1, 0.95) < 0.93


@pytest.mark.slow
@pytest.mark.parametrize("variants", [1, 2, 8, 30])
def test_they_cover_under_any_noise(variants):
    runs = max(2_000, RUNS // variants)  # what is judged together is many intervals a run
    spreads = np.geomspace(0.2, 8, 16)
    covered = [coverage(spread, variants, CORRECTED, runs=runs) for spread in spreads]
    assert 0.94 < min(covered) <= max(covered) < 0.972


def test_half_a_width_is_half_of_the_interval_in_points():
    logs = np.log([0.8, 0.81, 0.79, 0.8, 0.82, 0.8, 0.78])
    interval = stats.t.interval(0.95, 6, logs.mean(), stats.sem(logs))
    assert half_width(logs, 0.95) == pytest.approx(50 * np.ptp(np.exp(interval)))


def test_few_repeats_say_nothing():
    assert half_width(np.zeros(5), 0.95) == math.inf
    assert half_width(np.zeros(6), 0.95) == 0


def test_the_widest_is_named_and_missing_ratios_do_not_count():
    ratios = {"calm": [0.0] * 7, "wild": [0.1, -0.1] * 3, "short": [np.nan, *[0.0] * 6]}
    name, width = widest(ratios, 0.95)
    assert (name, width) == ("wild", half_width(ratios["wild"], 0.95))
    assert widest({}, 0.95) == ("", 0.0)
    assert widest({"short": [np.nan, *[0.0] * 5]}, 0.95) == ("short", math.inf)


def test_repeats_are_a_number_or_a_precision():
    assert (precision(6), looks(6), level(6)) == (None, (6,), 0.95)
    until = "until 2.5 points"
    assert (precision(until), looks(until), level(until)) == (2.5, LOOKS, CORRECTED)


@pytest.mark.parametrize("text", ["until 0 points", "2 points", "until two points", "6", ""])
def test_what_is_neither_is_refused(text):
    with pytest.raises(ValueError, match="such as 'until 2 points', not"):
        precision(text)


def test_disturbed_repeats_are_measured_again_up_to_a_limit():
    assert [further(repeats) for repeats in (1, 5, 6, 13)] == [0, 0, 3, 6]
