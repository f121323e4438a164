import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from sdbench.analysis.draws import less, over_draws
from sdbench.analysis.pairs import changed_share, metric_columns, pair_interval, paired_verdict
from sdbench.analysis.stats import Interval, bounded_mean

RANGE = (0.0, 1.0)


def images_of(values):
    """Images of a table prompts x seeds x draws."""
    prompts, seeds, draws = values.shape
    places = [[f"{prompt:03d}" for prompt in range(prompts)], range(seeds), range(draws)]
    index = pd.MultiIndex.from_product(places, names=["prompt_id", "seed", "draw"])
    return pd.Series(values.ravel(), index=index)


def test_ends_move_by_what_the_masks_add():
    """The variance component of the columns of a crossed table, by its textbook mean squares."""
    values = np.random.default_rng(0).uniform(size=(5, 1, 4)) + 0.3 * np.arange(4)
    table = values[:, 0]
    columns = table.mean(axis=0)
    rest = table - table.mean(axis=1)[:, None] - columns + table.mean()
    between = 5 * ((columns - table.mean()) ** 2).sum() / 3
    within = (rest**2).sum() / (4 * 3)
    half = student.ppf(0.975, 3) * np.sqrt((between - within) / 5 / 4)

    found = over_draws(Interval(0.7, 0.5, 1.0), images_of(values), (-9.0, 9.0))
    assert found.estimate == 0.7
    assert found.lo == pytest.approx(0.7 - np.hypot(0.2, half))
    assert found.hi == pytest.approx(0.7 + np.hypot(0.3, half))


def test_masks_that_differ_by_no_more_than_prompts_make_them_add_nothing():
    values = np.array([[0.2, 0.4], [0.4, 0.2]])[:, None, :]
    given = Interval(0.3, 0.1, 0.5)
    assert over_draws(given, images_of(values), RANGE) == given


def test_one_draw_leaves_the_interval():
    given = Interval(0.3, 0.1, 0.5)
    values = np.random.default_rng(0).uniform(size=(8, 2, 1))
    assert over_draws(given, images_of(values), RANGE) == given


def test_where_nothing_says_what_masks_change_there_is_no_interval():
    values = np.random.default_rng(0).uniform(size=(1, 2, 8))
    found = over_draws(Interval(0.3, 0.1, 0.5), images_of(values), RANGE)
    assert found.estimate == 0.3
    assert np.isnan(found[1:]).all()


def test_ends_stay_in_the_range_and_a_missing_one_stays_missing():
    values = np.tile([0.0, 0.9], (8, 1, 1))
    found = over_draws(Interval(0.45, 0.4, 0.5), images_of(values), RANGE)
    assert (found.lo, found.hi) == RANGE
    assert np.isnan(over_draws(Interval(0.45, np.nan, np.nan), images_of(values), RANGE)[1:]).all()


def test_a_prompt_that_lacks_a_draw_moves_no_draw():
    values = np.random.default_rng(1).uniform(size=(9, 1, 4)) * [1.0, 0.8, 0.6, 0.4]
    given = Interval(0.4, 0.3, 0.5)
    images = images_of(values)
    whole = images[images.index.get_level_values("prompt_id") != "008"]
    lacking = images.drop(("008", 0, 3))
    assert over_draws(given, lacking, RANGE) == over_draws(given, whole, RANGE) != given


@pytest.mark.parametrize("of_masks", [0.0, 0.04])
def test_the_interval_holds_the_mean_over_all_masks(of_masks):
    """Prompts alone do not tell how other masks would have come out."""
    rng = np.random.default_rng(0)
    prompts, draws, times = 128, 8, 60
    held = np.zeros(2)
    for _ in range(times):
        values = 0.4 + rng.normal(0, 0.08, (prompts, 1, 1))
        values = values + rng.normal(0, of_masks, draws) + rng.normal(0, 0.1, (prompts, 1, draws))
        over_prompts = bounded_mean(values.mean(axis=(1, 2)), np.arange(prompts), bounds=RANGE)
        both = over_draws(over_prompts, images_of(values), RANGE)
        held += [each.lo <= 0.4 <= each.hi for each in (over_prompts, both)]
    assert held[1] / times >= 0.93
    assert (held[0] / times >= 0.93) == (of_masks == 0)


def test_images_of_no_draw_leave_the_interval():
    """Variants without draws stand in the same tables."""
    values = np.random.default_rng(2).uniform(size=(8, 2, 1))
    images = images_of(values).rename(index={0: pd.NA}, level="draw")
    given = Interval(0.3, 0.1, 0.5)
    assert over_draws(given, images, RANGE) == given


def test_each_image_is_held_against_its_pair():
    images = images_of(np.arange(8.0).reshape(2, 1, 4))
    pairs = pd.Series({("001", 0): 10.0, ("000", 0): 1.0})
    pairs.index.names = ["prompt_id", "seed"]
    assert less(images, pairs).tolist() == [-1, 0, 1, 2, -6, -5, -4, -3]
    assert less(pairs, pairs).tolist() == [0, 0]


def test_a_table_widens_the_mean_and_counts_images_for_the_rest():
    rng = np.random.default_rng(0)
    images = images_of(0.2 + rng.normal(0, 0.02, (64, 1, 8)) + rng.normal(0, 0.05, 8))
    pairs = images.groupby(level=["prompt_id", "seed"]).mean()
    alone, row = pair_interval(pairs, "lpips"), metric_columns(pairs, "lpips", images=images)
    assert row["lpips"] == pytest.approx(alone.estimate)
    assert row["lpips_hi"] - row["lpips_lo"] > 1.2 * (alone.hi - alone.lo)
    changed = changed_share(images.droplevel("draw"), "lpips")
    assert row["lpips_changed"] == changed.estimate
    assert row["lpips_changed_hi"] >= changed.hi
    assert row["lpips_median"] == pytest.approx(images.median(), abs=0.01)


def test_a_plan_is_not_better_than_masks_of_which_some_are_as_good():
    """Its difference is clear for these masks, not for others."""
    rng = np.random.default_rng(0)
    of_masks = np.array([0.3, 0.25, -0.2, 0.25, -0.15, 0.3, -0.2, 0.25])
    images = images_of(of_masks + rng.normal(0, 0.005, (128, 1, 8)))
    pairs = images.groupby(level=["prompt_id", "seed"]).mean()
    assert paired_verdict(-pairs, "lpips").mean.hi < 0
    assert paired_verdict(-pairs, "lpips", images=-images).mean.hi > 0
