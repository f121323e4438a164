import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sdbench.analysis.stats import NORMAL_LIMIT, cluster_bootstrap, jackknife, ratio_interval

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


@pytest.mark.parametrize(
    ("draw", "per_cluster"),
    [
        (lambda generator: generator.normal(size=8), 1),
        (lambda generator: generator.uniform(-1, 1, size=8), 2),
        (lambda generator: generator.lognormal(0, 0.5, size=8) - np.exp(0.125), 3),
    ],
    ids=["normal", "uniform", "skewed"],
)
def test_bootstrap_covers_at_eight_clusters(draw, per_cluster):
    generator = np.random.default_rng(1)
    clusters = np.repeat(np.arange(8), per_cluster)
    hits = []
    for _ in range(1000):
        within = 0.3 * (per_cluster > 1) * generator.normal(size=len(clusters))
        _, lo, hi = cluster_bootstrap(draw(generator)[clusters] + within, clusters, resamples=500)
        hits.append(lo <= 0 <= hi)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_bootstrap_gives_no_interval_where_one_cluster_decides():
    values = [0.001, 0.002, 0.001, 0.003, 0.001, 0.002, 0.001, 0.28]
    estimate, lo, hi = cluster_bootstrap(values, np.arange(8))
    assert estimate == pytest.approx(np.mean(values))
    assert np.isnan([lo, hi]).all()


def test_bootstrap_of_many_clusters_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(size=400)
    expected = stats.bootstrap((values,), np.mean, method="BCa", rng=1).confidence_interval
    estimate, lo, hi = cluster_bootstrap(values, np.arange(400))
    assert estimate == pytest.approx(values.mean())
    np.testing.assert_allclose([lo, hi], expected, atol=0.01)


def test_seeds_of_one_prompt_are_not_independent():
    prompts = np.random.default_rng(0).normal(size=10)
    alone = cluster_bootstrap(prompts, np.arange(10))
    np.testing.assert_allclose(
        cluster_bootstrap(np.repeat(prompts, 5), np.repeat(np.arange(10), 5)), alone
    )


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-10, 10), min_size=8, max_size=20),
    factor=st.floats(0.1, 10),
    order=st.randoms(use_true_random=False),
)
def test_bootstrap_scales_with_its_values_and_ignores_order(values, factor, order):
    numbers = order.sample(range(len(values)), len(values))
    values, clusters = np.array(values), np.arange(len(values)) % 7
    plain = np.array(cluster_bootstrap(values, clusters, resamples=100))
    mixed = cluster_bootstrap(factor * values[numbers], clusters[numbers], resamples=100)
    np.testing.assert_allclose(mixed, factor * plain, rtol=1e-6, atol=1e-9)


def test_above_the_limit_the_interval_is_normal_with_a_cluster_robust_error():
    clusters = np.arange(NORMAL_LIMIT + 2) // 2
    values = np.random.default_rng(0).normal(size=NORMAL_LIMIT // 2 + 1)[clusters]
    means = values[::2]
    half = 1.96 * means.std(ddof=1) / np.sqrt(len(means))
    np.testing.assert_allclose(
        cluster_bootstrap(values, clusters),
        [values.mean(), values.mean() - half, values.mean() + half],
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("values", "clusters"),
    [
        ([1.0, 2, 3, 4, 5], "abcde"),
        ([1.0, 2, 3, 4, 5, 6, 7, 8], "aaaabbbb"),
        ([0.7] * 7, "abcdefg"),
        ([0.7] * (NORMAL_LIMIT + 1), range(NORMAL_LIMIT + 1)),
        ([0.0] * 7 + [1], "abcdefgh"),
        ([np.inf] * 8, "abcdefgh"),
        ([], ""),
    ],
    ids=["few pairs", "few clusters", "all equal", "many equal", "one differs", "infinite", "none"],
)
def test_too_little_to_know_gives_no_interval(values, clusters):
    estimate, lo, hi = cluster_bootstrap(values, list(clusters))
    assert np.isnan([lo, hi]).all()
    np.testing.assert_equal(estimate, np.mean(values) if values else np.nan)


@pytest.mark.parametrize(
    ("values", "message"), [([1.0, 2.0], "equal length"), ([np.nan], "without NaN")]
)
def test_bootstrap_refuses_what_it_cannot_average(values, message):
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap(values, ["a"])


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).normal(size=24)
    without = [np.delete(values, index).mean() for index in range(24)]
    found = jackknife(values.mean(), without)
    expected = stats.t.interval(0.95, 23, values.mean(), stats.sem(values))
    assert (found.lo, found.hi) == pytest.approx(expected)


def test_a_jackknife_of_few_groups_has_no_ends():
    assert np.isnan(jackknife(1.0, [0.9, 1.0, 1.1]).lo)
