import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sdbench.analysis.pairs import (
    BETTER,
    IDENTICAL,
    NEARER,
    UNDECIDED,
    changed_share,
    metric_columns,
    metric_levels,
    pair_interval,
    pair_median,
    paired_verdict,
)


def pairs(values, seeds=1):
    prompts = len(values) // seeds
    index = pd.MultiIndex.from_product(
        [[f"p{place}" for place in range(prompts)], range(seeds)], names=["prompt_id", "seed"]
    )
    return pd.Series(np.asarray(values, dtype=float), index)


def some(count):
    return np.random.default_rng(0).uniform(0, 0.5, count)


@pytest.mark.parametrize(
    ("metric", "fewest"),
    [("lpips", 64), ("flip", 64), ("ssim", 64), ("clip_score", 64), ("alignment", 6)],
)
def test_the_number_of_prompts_decides_whether_a_mean_has_an_interval(metric, fewest):
    for values in (some(fewest), np.zeros(fewest), np.r_[np.zeros(fewest - 1), 0.5]):
        assert not np.isnan(pair_interval(pairs(values), metric).lo)
        assert np.isnan(pair_interval(pairs(values[1:]), metric).lo)


def test_seeds_are_no_further_prompts():
    assert np.isnan(pair_interval(pairs(some(4 * 63), seeds=4), "lpips").lo)
    assert not np.isnan(pair_interval(pairs(some(4 * 64), seeds=4), "lpips").lo)


@pytest.mark.parametrize("metric", ["psnr", "image_reward", "own"])
def test_without_a_range_no_number_of_prompts_is_enough(metric):
    assert np.isnan(pair_interval(pairs(some(500)), metric)[1:]).all()
    assert not np.isnan(pair_median(pairs(some(500)))).any()


def test_a_difference_needs_many_prompts_and_may_be_negative():
    assert np.isnan(pair_interval(pairs(-some(63)), "alignment", difference=True).lo)
    found = pair_interval(pairs(-some(64)), "alignment", difference=True)
    assert -1 < found.lo < found.estimate < found.hi < 0


def test_pairs_without_a_value_do_not_count():
    values = pairs(np.r_[some(70), np.full(30, np.nan)])
    assert pair_interval(values, "lpips") == pair_interval(values.dropna(), "lpips")
    assert changed_share(values, "lpips") == changed_share(values.dropna(), "lpips")


@pytest.mark.parametrize(
    ("metric", "values", "changed"),
    [
        ("lpips", [0, 0.0125, 0.013, 0.4, 0, 0, 0, 0], 2),
        ("flip", [0, 0.12, 0.13, 0.4, 0, 0, 0, 0], 2),
        ("ssim", [1, 0.965, 0.96, 0.4, 1, 1, 1, 1], 2),
    ],
)
def test_images_beyond_the_threshold_are_changed(metric, values, changed):
    found = changed_share(pairs(values), metric)
    exact = stats.binomtest(changed, 8).proportion_ci(0.95, "exact")
    assert found == pytest.approx((changed / 8, exact.low, exact.high))
    assert metric_levels(pairs(values), metric)["changed"] == changed / 8


def test_a_metric_without_a_reference_changes_no_image():
    assert np.isnan(changed_share(pairs(some(8)), "alignment")).all()
    columns = metric_columns(pairs(some(8)), "alignment")
    ends = ("", "_lo", "_hi")
    assert list(columns) == [f"alignment{kind}{end}" for kind in ("", "_median") for end in ends]


def test_the_columns_of_a_metric_are_its_mean_median_and_share():
    values = pairs(np.r_[np.full(90, 0.001), np.full(10, 0.6)])
    columns = metric_columns(values, "lpips")
    assert columns["lpips"] == pytest.approx(0.0609)
    assert columns["lpips_median"] == columns["lpips_median_hi"] == 0.001
    assert columns["lpips_changed"] == 0.1
    assert columns["lpips_lo"] > 0


def few_decide(many, much):
    """Differences of which most are a little on one side, and a few far on the other."""
    return pairs(np.r_[np.full(95, many), np.full(5, much)])


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (pairs(np.full(100, -0.2)), "nearer"),
        (pairs(np.full(100, 0.2)), "farther"),
        (pairs(np.zeros(100)), IDENTICAL),
        (pairs(np.tile([0.01, -0.01], 50)), UNDECIDED),
        (few_decide(-0.001, 0.5), "nearer in most images, farther in a few"),
        (few_decide(0.001, -0.5), "farther in most images, nearer in a few"),
        (few_decide(-0.001, -0.5), "nearer in most images"),
        (pairs(np.tile([-0.5, 0.001], 50)), "nearer by the mean alone"),
        (pairs(np.full(20, -0.2)), "nearer in most images"),
        (pairs(np.full(5, -0.2)), UNDECIDED),
    ],
)
def test_a_plain_verdict_needs_mean_and_most_images(difference, verdict):
    assert paired_verdict(difference, "lpips", words=NEARER).verdict == verdict


def test_a_verdict_says_what_it_is_of():
    found = paired_verdict(few_decide(-0.001, 0.5), "lpips")
    assert found.mean.lo < found.mean.estimate == pytest.approx(0.02405)
    assert found.better.estimate == 0.95
    assert found.verdict.startswith(BETTER[0])


@pytest.mark.parametrize("seed", range(3))
def test_equal_variants_are_seldom_told_apart(seed):
    """Rare flips on both sides: the difference is symmetric."""
    generator = np.random.default_rng(seed)
    told = 0
    for _ in range(60):
        flips = np.where(generator.random((2, 64)) < 0.05, 0.5, 0.0)
        first, second = flips + generator.normal(0, 0.001, (2, 64))
        verdict = paired_verdict(pairs(first - second), "lpips", words=NEARER).verdict
        told += verdict in NEARER
    assert told <= 3


def test_many_seeds_of_few_prompts_tell_nothing():
    difference = pairs(np.repeat([-0.1, -0.1, 0.1, -0.1, -0.1, 0.1], 100), seeds=100)
    assert paired_verdict(difference, "lpips").verdict == UNDECIDED
