import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sdbench.analysis.stats import (
    bounded_mean,
    median_interval,
    ratio_interval,
    share_interval,
    sign_interval,
)

latencies = st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=6, max_size=12)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_ratio_is_the_paired_t_test_on_logarithms(level):
    a, b = np.random.default_rng(0).lognormal(size=(2, 9))
    expected = stats.ttest_rel(np.log(a), np.log(b)).confidence_interval(level)
    estimate, lo, hi = ratio_interval(a, b, level=level)
    np.testing.assert_allclose([lo, hi], np.exp([expected.low, expected.high]))
    assert estimate == pytest.approx(stats.gmean(a / b))


@settings(deadline=None)
@given(pairs=latencies, factor=st.floats(0.1, 10), order=st.randoms())
def test_ratio_scales_with_its_numerator_and_ignores_order(pairs, factor, order):
    shuffled = order.sample(pairs, len(pairs))
    a, b = np.array(pairs).T
    c, d = np.array(shuffled).T
    np.testing.assert_allclose(
        ratio_interval(factor * c, d), factor * np.array(ratio_interval(a, b)), rtol=1e-6
    )


@settings(deadline=None)
@given(pairs=latencies)
def test_ratio_inverts_with_its_arguments(pairs):
    a, b = np.array(pairs).T
    estimate, lo, hi = ratio_interval(a, b)
    np.testing.assert_allclose(ratio_interval(b, a), [1 / estimate, 1 / hi, 1 / lo], rtol=1e-6)


def test_ratio_of_few_pairs_has_no_interval():
    estimate, lo, hi = ratio_interval([1, 2, 3, 4, 5], [2, 4, 6, 8, 10])
    assert estimate == pytest.approx(0.5)
    assert np.isnan([lo, hi]).all()
    assert np.isnan(ratio_interval([], [])).all()


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([1, 2], [1], "equal length"), ([0, 1], [1, 1], "positive"), ([1, np.nan], [1, 1], "finite")],
)
def test_ratio_refuses_what_has_none(a, b, message):
    with pytest.raises(ValueError, match=message):
        ratio_interval(a, b)


def test_ratio_covers():
    draws = np.random.default_rng(0).lognormal(0, 0.1, size=(2000, 2, 6))
    intervals = np.array([ratio_interval(1.2 * a, b) for a, b in draws])
    assert 0.94 <= np.mean((intervals[:, 1] <= 1.2) & (intervals[:, 2] >= 1.2)) <= 0.96


def sample(count, seed=0):
    """Rare large values among small ones, as the LPIPS of a variant that flips few images."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random(count) < 0.05, 0.5, 0.001) * generator.random(count)


@pytest.mark.parametrize("count", [6, 8, 64, 256])
@pytest.mark.parametrize("trues", [0, 1, 2])
def test_a_mean_of_zeros_and_ones_has_the_interval_of_clopper_and_pearson(count, trues):
    values = np.arange(count) < trues
    _, lo, hi = bounded_mean(values, np.arange(count), bounds=(0, 1))
    assert stats.binom.cdf(trues, count, hi) == pytest.approx(0.025, abs=0.001)
    if trues:
        assert stats.binom.sf(trues - 1, count, lo) == pytest.approx(0.025, abs=0.001)
    else:
        assert lo == 0


@pytest.mark.parametrize("values", [sample(64), sample(8), 1 - sample(64), np.full(8, 0.3)])
def test_the_ends_of_a_mean_are_those_of_exponential_weights(values):
    _, lo, hi = bounded_mean(values, np.arange(len(values)), bounds=(0, 1))
    weights = np.random.default_rng(0).exponential(size=(200_000, len(values) + 1))
    weights /= weights.sum(1, keepdims=True)
    above = weights @ np.append(values, 1) > hi
    below = weights @ np.append(values, 0) < lo
    assert np.mean(above) == pytest.approx(0.025, abs=0.002)
    assert np.mean(below) == pytest.approx(0.025, abs=0.002)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_a_share_has_the_interval_of_clopper_and_pearson(level):
    flags = np.arange(20) < 3
    exact = stats.binomtest(3, 20).proportion_ci(level, "exact")
    found = share_interval(flags, np.arange(20), level=level)
    assert found == pytest.approx((0.15, exact.low, exact.high))


@pytest.mark.parametrize(("all_of", "ends"), [(0, (0, 0.3694)), (1, (0.6306, 1))])
def test_a_share_of_none_or_all_is_not_certain(all_of, ends):
    found = share_interval([all_of] * 8, range(8))
    assert found == pytest.approx((all_of, *ends), abs=1e-4)


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (64, 24), (100, 40)])
def test_a_median_lies_between_order_statistics(count, rank):
    """Ranks as tables of the sign test have them."""
    values = np.random.default_rng(0).permutation(count) + 1.0
    estimate, lo, hi = median_interval(values, np.arange(count))
    assert (estimate, lo, hi) == (np.median(values), rank, count + 1 - rank)


def test_infinite_values_have_a_median():
    assert median_interval([np.inf] * 5 + [1.0] * 4, range(9)) == (np.inf, 1, np.inf)


def test_the_share_of_signs_is_the_sign_test():
    differences = np.r_[np.full(15, -0.1), np.full(5, 0.3), np.zeros(7)]
    found = sign_interval(differences, np.arange(27))
    exact = stats.binomtest(15, 20).proportion_ci(0.95, "exact")
    assert found == pytest.approx((0.75, exact.low, exact.high))
    assert stats.binomtest(15, 20).pvalue < 0.05 < 0.5 < found.lo


def test_where_nothing_differs_there_is_no_share_of_signs():
    assert np.isnan(sign_interval(np.zeros(20), np.arange(20))).all()


INTERVALS = {
    "mean": lambda values, clusters: bounded_mean(values, clusters, bounds=(0, 1)),
    "median": median_interval,
    "share": lambda values, clusters: share_interval(values > 0.4, clusters),
    "signs": lambda values, clusters: sign_interval(values - 0.4, clusters),
}


@pytest.mark.parametrize("name", INTERVALS)
def test_seeds_of_one_prompt_are_not_independent(name):
    """Four equal seeds say no more than one."""
    values = np.random.default_rng(1).random(30)
    alone = INTERVALS[name](values, np.arange(30))
    repeated = INTERVALS[name](np.repeat(values, 4), np.repeat(np.arange(30), 4))
    np.testing.assert_allclose(repeated, alone, atol=2e-3)


@pytest.mark.parametrize("name", INTERVALS)
def test_seeds_that_differ_say_more(name):
    values = np.random.default_rng(1).random(120)
    of_four = INTERVALS[name](values, np.repeat(np.arange(30), 4))
    of_one = INTERVALS[name](values[::4], np.arange(30))
    assert of_four.hi - of_four.lo < of_one.hi - of_one.lo


@pytest.mark.parametrize("name", INTERVALS)
@settings(deadline=None, max_examples=25)
@given(
    values=st.lists(st.floats(0, 1), min_size=8, max_size=20),
    order=st.randoms(use_true_random=False),
)
def test_intervals_ignore_order_and_stay_in_the_range(name, values, order):
    numbers = order.sample(range(len(values)), len(values))
    values, clusters = np.array(values), np.arange(len(values)) % 7
    found = INTERVALS[name](values, clusters)
    mixed = INTERVALS[name](values[numbers], clusters[numbers])
    np.testing.assert_allclose(mixed, found, rtol=1e-5, atol=1e-9)
    if not np.isnan(found.lo):
        assert -1e-12 <= found.lo <= found.estimate + 1e-12
        assert found.estimate - 1e-12 <= found.hi <= 1 + 1e-12


@settings(deadline=None, max_examples=25)
@given(values=st.lists(st.floats(0, 1), min_size=64, max_size=64))
def test_whether_a_mean_has_an_interval_depends_on_the_number_alone(values):
    ends = bounded_mean(values, range(64), bounds=(0, 1), fewest=64)[1:]
    assert np.isfinite(ends).all()
    assert np.isnan(bounded_mean(values[1:], range(63), bounds=(0, 1), fewest=64)[1:]).all()


def test_prompts_with_unequal_numbers_of_images_count_by_them():
    """Against a bootstrap of whole clusters, of a mean in the middle of its range."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(2, 5, size=400)
    clusters = np.repeat(np.arange(400), sizes)
    values = 0.5 + 0.15 * generator.normal(size=400)[clusters].clip(-3, 3)
    drawn = generator.integers(400, size=(4000, 400))
    sums = np.bincount(clusters, weights=values)
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    estimate, lo, hi = bounded_mean(values, clusters, bounds=(0, 1))
    assert estimate == pytest.approx(values.mean())
    assert (lo, hi) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.005)


def test_equal_values_beyond_the_range_are_its_end():
    interval = bounded_mean([1.3] * 70, range(70), bounds=(0, 1))
    assert interval.lo < interval.estimate == pytest.approx(interval.hi) == pytest.approx(1.3)


def test_a_value_beyond_the_range_widens_it():
    within = bounded_mean([0.1] * 7 + [1.0], range(8), bounds=(0, 1))
    beyond = bounded_mean([0.1] * 7 + [1.5], range(8), bounds=(0, 1))
    assert beyond.hi > within.hi + 0.5 / 8
    same = bounded_mean([1.5] * 8, range(8), bounds=(0, 1))
    assert same.hi == same.estimate == 1.5 > same.lo


@pytest.mark.parametrize(
    ("values", "clusters", "bounds"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5], "abcde", (0, 1)),
        ([0.1] * 8, "aaaabbbb", (0, 1)),
        ([0.1] * 8, "abcdefgh", (0, np.inf)),
        ([np.inf] * 8, "abcdefgh", (0, 1)),
        ([], "", (0, 1)),
    ],
    ids=["few pairs", "few clusters", "no range", "infinite", "none"],
)
def test_too_little_to_know_gives_no_interval_of_a_mean(values, clusters, bounds):
    estimate, lo, hi = bounded_mean(values, list(clusters), bounds=bounds)
    assert np.isnan([lo, hi]).all()
    np.testing.assert_equal(estimate, np.mean(values) if values else np.nan)


@pytest.mark.parametrize("interval", [share_interval, median_interval])
def test_few_clusters_give_no_interval(interval):
    assert np.isnan(interval([0.0, 1, 1, 0, 1, 1, 1], list("abcdeee"))[1:]).all()
    assert np.isnan(interval([], [])).all()


@pytest.mark.parametrize(
    ("values", "message"), [([1.0, 2.0], "equal length"), ([np.nan], "without NaN")]
)
@pytest.mark.parametrize("name", ["mean", "median"])
def test_what_cannot_be_averaged_is_refused(name, values, message):
    with pytest.raises(ValueError, match=message):
        INTERVALS[name](np.array(values), ["a"])
