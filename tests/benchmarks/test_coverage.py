"""Every interval that tables show holds, of the stored studies as populations."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from benchmarks import populations as stored
from benchmarks.coverage import coverage, figures, table
from benchmarks.populations import DIFFERENCE, draw

LEAST = 0.93
populations = cache(stored.populations)


def population(metric, variant):
    found = {(one.metric, one.variant): one for one in reversed(populations())}
    *_, values = found[metric, variant]
    return values


def of(metric, name):
    return next(figure for figure in figures(metric) if figure.name == name)


def test_stored_studies_have_populations_of_every_reference_metric():
    found = populations()
    assert {one.metric for one in found} >= {"lpips", "flip", "ssim", "alignment", DIFFERENCE}
    assert {len(one.values) for one in found} == {128, 256}


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_draw_has_the_mean_of_its_population(seeds):
    values = population("lpips", "unguided")
    generator = np.random.default_rng(0)
    drawn = np.stack([draw(values, 8, seeds, generator) for _ in range(2000)])
    assert drawn.mean() == pytest.approx(values.mean(), abs=4 * values.std() / np.sqrt(16_000))
    if seeds > 1:
        alike = np.corrcoef(drawn[:, :, 0].ravel(), drawn[:, :, 1].ravel())[0, 1]
        assert 0.1 < alike < 0.6


@pytest.mark.parametrize(
    ("metric", "variant", "name", "prompts", "seeds"),
    [
        ("lpips", "scale:4.5", "mean", 64, 1),
        ("lpips", "unguided", "mean", 64, 4),
        ("lpips", "scale:4.5", "changed", 8, 1),
        ("lpips", "unguided", "median", 8, 4),
        ("alignment", "unguided", "mean", 8, 1),
        (DIFFERENCE, "scale:4.5", "mean", 64, 1),
    ],
)
def test_an_interval_holds(metric, variant, name, prompts, seeds):
    values = population(metric, variant)
    held, width = coverage(of(metric, name), values, prompts=prompts, seeds=seeds, draws=80)
    assert held >= LEAST - 0.03
    assert width > 0


def test_a_mean_of_few_prompts_is_not_given():
    values = population("lpips", "scale:4.5")
    assert np.isnan(coverage(of("lpips", "mean"), values, prompts=16, seeds=1, draws=20)).all()


def test_an_interval_that_is_given_for_some_draws_alone_is_refused():
    figure = of("lpips", "mean")

    def ends(samples):
        found = figure.ends(samples)
        return found._replace(lo=np.where(samples.max((1, 2)) > 0.1, found.lo, np.nan))

    own = figure._replace(ends=ends)
    with pytest.raises(AssertionError, match="given for some draws alone"):
        coverage(own, population("lpips", "scale:4.5"), prompts=64, seeds=1, draws=60)


def first_of_every_metric():
    return list({one.metric: one for one in reversed(populations())}.values())


def assert_ends_are_those_of_each_sample(population, prompts, seeds, draws):
    generator = np.random.default_rng(0)
    samples = np.stack([draw(population.values, prompts, seeds, generator) for _ in range(draws)])
    index = pd.MultiIndex.from_product([range(prompts), range(seeds)], names=["prompt_id", "seed"])
    for figure in figures(population.metric):
        own = [figure.interval(pd.Series(sample.ravel(), index)) for sample in samples]
        expected = [[one.lo for one in own], [one.hi for one in own]]
        np.testing.assert_allclose(figure.ends(samples), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("prompts", [5, 8, 64])
def test_intervals_of_many_samples_are_those_that_tables_show(prompts, seeds):
    for population in first_of_every_metric():
        assert_ends_are_those_of_each_sample(population, prompts, seeds, 4)


@pytest.mark.parametrize("seeds", [1, 4])
def test_they_are_so_where_few_values_differ(seeds):
    for values in (np.zeros(256), np.ones(256), np.repeat([0.0, 0.4], [255, 1])):
        population = stored.Population("study", "variant", "lpips", values)
        assert_ends_are_those_of_each_sample(population, 64, seeds, 8)


@pytest.mark.slow  # two minutes
def test_every_interval_holds():
    for population in populations():
        assert_ends_are_those_of_each_sample(population, 64, 4, 1)
    found = table(populations(), draws=200).dropna(subset=["least"])
    noise = 2.5 * np.sqrt(LEAST * (1 - LEAST) / 200)  # of the worst of dozens of populations
    assert (found["least"] >= LEAST - noise).all()
    assert (found["middle"] >= LEAST).all()
