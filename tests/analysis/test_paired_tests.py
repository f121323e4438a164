import numpy as np
import pytest
from scipy import stats

from sdbench.analysis.paired_tests import DRAWS, clear_tests, flip_tests, slower_tests


def test_with_few_prompts_every_choice_of_signs_counts_once():
    differences = np.random.default_rng(0).normal(0.4, 1, 9)
    oracle = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=np.inf,
        alternative="greater",
    )
    tests = flip_tests(differences[:, None], np.arange(9))
    assert tests.above.item() == pytest.approx(oracle.pvalue)
    assert tests.below.item() == pytest.approx(
        flip_tests(-differences[:, None], range(9)).above.item()
    )


def test_with_many_prompts_the_signs_are_drawn():
    drawn = np.random.default_rng(1).standard_t(2, (100, 3))
    differences = drawn + np.array([0.0, 0.3, -0.3])
    signs = flip_tests(np.sign(differences), np.arange(100)).above
    oracle = [
        stats.binomtest(int((d > 0).sum()), 100, alternative="greater").pvalue
        for d in differences.T
    ]
    np.testing.assert_allclose(signs, oracle, atol=4 * np.sqrt(0.25 / DRAWS))


def test_seeds_of_a_prompt_are_no_prompts():
    differences = np.random.default_rng(2).normal(0.5, 1, 10)
    alone = flip_tests(differences[:, None], np.arange(10))
    seeds = flip_tests(np.repeat(differences, 4)[:, None], np.repeat(np.arange(10), 4))
    assert (
        seeds.above.item()
        == alone.above.item()
        > flip_tests(np.repeat(differences, 4)[:, None], np.arange(40)).above.item()
    )


def test_what_was_not_measured_or_does_not_differ_tells_nothing():
    differences = np.array([[1.0, 0.0], [1.0, 0.0], [np.nan, 0.0], [1.0, 0.0]])
    tests = flip_tests(differences, range(4))
    np.testing.assert_allclose(tests.above, [1 / 8, 1])
    np.testing.assert_allclose(tests.below, [1, 1])


def test_a_few_large_differences_against_most_pairs_are_not_clear():
    differences = np.concatenate([np.full(20, 0.5), np.full(180, -0.001)])[:, None]
    assert flip_tests(differences, range(200)).above.item() < 0.001
    tests = clear_tests(differences, range(200), most=True)
    assert min(tests.above.item(), tests.below.item()) > 0.9


@pytest.mark.parametrize("seed", range(2))
def test_the_size_holds_under_heavy_tails(seed):
    differences = np.random.default_rng(seed).standard_cauchy((30, 2000))
    found = flip_tests(differences, range(30), draws=2000).above < 0.05
    assert 0.035 < found.mean() < 0.065


def test_two_variants_are_tested_as_a_paired_t_test():
    logs = np.random.default_rng(3).normal(0, 0.1, (6, 2)) + np.array([0.1, 0])
    p = slower_tests(logs)
    oracle = stats.ttest_rel(logs[:, 0], logs[:, 1], alternative="greater").pvalue
    assert [p[0, 1], p[1, 0]] == pytest.approx([oracle, 1 - oracle])
    assert slower_tests(logs, tolerance=0.03)[1, 0] < p[1, 0]


@pytest.mark.parametrize("unlike", [0, 0.5])
def test_the_size_of_the_test_of_times_holds(unlike):
    generator = np.random.default_rng(4)
    found = []
    for _ in range(200):
        noise = generator.normal(0, 1, (6, 12)) * np.exp(unlike * generator.normal(0, 1, 12))
        p = slower_tests(noise + generator.normal(0, 3, (6, 1)))
        found.append(p[np.triu_indices(12, 1)] < 0.01)
    assert 0.004 < np.mean(found) < 0.018


def test_a_spread_that_seems_to_be_none_shows_nothing_among_others():
    logs = np.random.default_rng(5).normal(0, 0.1, (6, 12))
    logs[:, 1] = logs[:, 0] + 0.001
    alone, among = slower_tests(logs[:, :2])[1, 0], slower_tests(logs)[1, 0]
    assert alone < 1e-6
    assert among > 0.1


def test_equal_times_and_single_repeats():
    np.testing.assert_array_equal(slower_tests([[1.0, 0.5]] * 3), [[1, 0], [1, 1]])
    assert (slower_tests([[1.0, 0.5]]) == 1).all()
    logs = np.array([[1.0, 0.5], [1.1, np.nan], [1.3, 0.7], [1.0, 0.6]])
    assert slower_tests(logs)[0, 1] == pytest.approx(slower_tests(logs[[0, 2, 3]])[0, 1])


def test_an_infinite_difference_counts_a_little_more_than_the_largest():
    # PSNR of an identical image is infinite: two such must not overflow, nor decide all.
    differences = np.concatenate([[np.inf, np.inf], np.linspace(1, 2, 10)])
    capped = np.where(np.isinf(differences), 2.02, differences)
    tests = flip_tests(np.stack([differences, -differences, capped], axis=1), np.arange(12))
    assert tests.above[0] == tests.below[1] == tests.above[2] < 0.001
    only = flip_tests(np.full((6, 1), np.inf), np.arange(6))
    assert only.above.item() == 1 / 64
