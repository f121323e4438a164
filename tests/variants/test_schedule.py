import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sdbench.variants.schedule import GuidanceSchedule, StepCount, read_schedule

steps_and_count = st.integers(1, 120).flatmap(
    lambda steps: st.tuples(st.just(steps), st.integers(0, steps))
)
seeds = st.integers(0, 2**32)


def dropped(schedule):
    return [step for step, guided in enumerate(schedule.mask) if not guided]


def bits(schedule):
    return "".join("1" if guided else "0" for guided in schedule.mask)


def test_masks_as_one_would_draw_them():
    assert bits(GuidanceSchedule.full(5)) == "11111"
    assert bits(GuidanceSchedule.none(5)) == "00000"
    assert bits(GuidanceSchedule.last(5, 2)) == "11100"
    assert bits(GuidanceSchedule.first(5, 2)) == "00111"
    assert bits(GuidanceSchedule.window(5, 1, 2)) == "10011"
    assert bits(GuidanceSchedule.every(5, 2)) == "10101"
    assert bits(GuidanceSchedule.every(7, 3)) == "1101101"
    assert bits(GuidanceSchedule.from_mask([1, 0, True, False, 0])) == "10100"


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=120))
def test_nfe_is_two_rows_for_a_guided_step_and_one_for_another(mask):
    schedule = GuidanceSchedule.from_mask(mask)
    assert schedule.mask == tuple(mask)
    assert schedule.nfe == sum(2 if guided else 1 for guided in mask)


@settings(deadline=None)
@given(steps_and_count, seeds)
def test_a_count_is_the_number_of_unguided_steps(given_steps, seed):
    steps, count = given_steps
    for schedule in (
        GuidanceSchedule.last(steps, count),
        GuidanceSchedule.first(steps, count),
        GuidanceSchedule.window(steps, steps - count, count),
        GuidanceSchedule.random(steps, count, seed=seed),
    ):
        assert len(schedule.mask) == steps
        assert schedule.mask.count(False) == count
        assert schedule.nfe == 2 * steps - count


@settings(deadline=None)
@given(steps_and_count)
def test_last_and_first_of_the_rest_complement_each_other(given_steps):
    steps, count = given_steps
    last, first = GuidanceSchedule.last(steps, count), GuidanceSchedule.first(steps, steps - count)
    assert all(one != other for one, other in zip(last.mask, first.mask, strict=True))
    assert last == GuidanceSchedule.window(steps, steps - count, count)


@settings(deadline=None)
@given(st.integers(1, 120), st.integers(1, 130))
def test_every_drops_one_step_in_each_whole_group(steps, period):
    schedule = GuidanceSchedule.every(steps, period)
    assert schedule.mask.count(False) == steps // period
    assert schedule.mask[period - 1 :: period] == (False,) * (steps // period)


@settings(deadline=None)
@given(steps_and_count, seeds)
def test_a_random_schedule_is_its_seed(given_steps, seed):
    steps, count = given_steps
    assert GuidanceSchedule.random(steps, count, seed=seed) == GuidanceSchedule.random(
        steps, count, seed=seed
    )


def test_random_schedules_differ_by_seed_and_favour_no_step():
    assert len({GuidanceSchedule.random(50, 25, seed=seed) for seed in range(20)}) == 20
    unguided = [0] * 10
    for seed in range(2000):
        for step, guided in enumerate(GuidanceSchedule.random(10, 3, seed=seed).mask):
            unguided[step] += not guided
    assert all(abs(times - 600) < 100 for times in unguided)  # 600 expected, standard deviation 20


@settings(deadline=None)
@given(steps_and_count, st.integers(1, 40))
def test_over_the_draws_every_step_is_unguided_equally_often(given_steps, draws):
    steps, count = given_steps
    masks = [GuidanceSchedule.random(steps, count, seed=draw).mask for draw in range(draws)]
    times = [mask.count(False) for mask in zip(*masks, strict=True)]
    assert sum(times) == draws * count
    assert max(times) - min(times) <= 1


def test_every_mask_is_as_likely_as_any_other_in_each_place_of_a_deal():
    """Five hands of two use up two decks of five; the third hand is of both."""
    masks: dict[int, Counter] = {place: Counter() for place in range(5)}
    for draw in range(5 * 1000):
        masks[draw % 5][bits(GuidanceSchedule.random(5, 2, seed=draw))] += 1
    for times in masks.values():
        assert len(times) == 10
        assert chisquare(list(times.values())).pvalue > 1e-4


def test_draws_of_other_counts_are_other_draws():
    """Prefixes of one permutation would make the steps of ten a part of those of twenty."""
    shared = [
        set(dropped(GuidanceSchedule.random(50, 10, seed=draw)))
        & set(dropped(GuidanceSchedule.random(50, 20, seed=draw)))
        for draw in range(200)
    ]
    assert np.mean([len(steps) for steps in shared]) == pytest.approx(10 * 20 / 50, abs=0.5)


def test_a_random_schedule_stays_what_it_is():
    """Stored results name it by its number alone."""
    assert bits(GuidanceSchedule.random(10, 4, seed=7)) == "1100101011"


@pytest.mark.parametrize(
    "make",
    [
        lambda: GuidanceSchedule.last(5, 6),
        lambda: GuidanceSchedule.last(5, -1),
        lambda: GuidanceSchedule.first(5, 6),
        lambda: GuidanceSchedule.first(5, -1),
        lambda: GuidanceSchedule.random(5, 6, seed=0),
        lambda: GuidanceSchedule.random(5, -1, seed=0),
    ],
)
def test_a_count_outside_the_loop_is_refused(make):
    with pytest.raises(ValueError, match=r"takes between 0 and 5 steps, not (6|-1)"):
        make()


@pytest.mark.parametrize("make", [GuidanceSchedule.last, GuidanceSchedule.first])
@pytest.mark.parametrize("count", [2.0, 2.5, "2"])
def test_a_count_that_is_no_integer_is_refused(make, count):
    with pytest.raises(TypeError):
        make(5, count)


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (4, 2), (0, 6), (2, -1)])
def test_a_window_that_does_not_fit_is_refused(start, length):
    with pytest.raises(ValueError, match="does not fit in 5 steps"):
        GuidanceSchedule.window(5, start, length)


@pytest.mark.parametrize("period", [0, -1])
def test_every_takes_a_period_of_at_least_one(period):
    with pytest.raises(ValueError, match="at least 1"):
        GuidanceSchedule.every(5, period)


@pytest.mark.parametrize(
    "make", [GuidanceSchedule.full, GuidanceSchedule.none, lambda steps: GuidanceSchedule(())]
)
def test_a_schedule_has_steps(make):
    with pytest.raises(ValueError, match="at least one step"):
        make(0)


@pytest.mark.parametrize(
    ("text", "steps", "count"),
    [
        ("10", 50, 10),
        ("0", 50, 0),
        ("20%", 50, 10),
        ("29%", 100, 29),  # int(0.29 * 100) is 28
        ("57%", 100, 57),
        ("20%", 51, 10),
        ("33.3%", 30, 10),
        ("0%", 50, 0),
        ("100%", 51, 51),
        ("50%", 99, 50),  # 49.5, to the even neighbour
        ("50%", 5, 2),  # 2.5, to the even neighbour
    ],
)
def test_a_text_becomes_whole_steps(text, steps, count):
    assert StepCount.parse(text).of(steps) == count


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 200))
def test_a_share_is_rounded_exactly(hundredths, steps):
    count = StepCount.parse(f"{hundredths / 100:.2f}%").of(steps)
    assert abs(count - Fraction(hundredths, 10_000) * steps) <= Fraction(1, 2)
    assert 0 <= count <= steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("120%", "not between 0% and 100%"),
        ("-1%", "not between 0% and 100%"),
        ("-1", "not a whole number"),
        ("2.5", "not a whole number"),
        ("1/2", "not a whole number"),
        ("ten", "neither a number of steps nor a percentage"),
        ("1e999999999", "neither a number of steps nor a percentage"),
        ("", "neither a number of steps nor a percentage"),
        ("%", "neither a number of steps nor a percentage"),
        ("nan", "neither a number of steps nor a percentage"),
        ("inf%", "neither a number of steps nor a percentage"),
        ("1/0", "neither a number of steps nor a percentage"),
    ],
)
def test_a_text_that_is_no_count_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        StepCount.parse(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_schedule_file_is_read_past_its_byte_order_mark(tmp_path, encoding):
    file = tmp_path / "plan.json"
    file.write_bytes(json.dumps({"mask": "10", "scheduler": "DDIMScheduler"}).encode(encoding))
    assert read_schedule(file)["mask"] == "10"
