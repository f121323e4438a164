"""Every interval that tables show holds, of the stored studies as populations."""

import numpy as np
import pytest

from benchmarks.coverage import coverage, figures, table
from benchmarks.populations import DIFFERENCE, draw, populations

LEAST = 0.93


def population(metric, variant):
    return next(
        one for one in populations() if (one.metric, one.variant) == (metric, variant)
    ).values


def of(metric, name):
    return next(figure for figure in figures(metric) if figure.name == name)


def test_stored_studies_have_populations_of_every_reference_metric():
    found = populations()
    assert {one.metric for one in found} >= {"lpips", "flip", "ssim", "alignment", DIFFERENCE}
    assert {len(one.values) for one in found} == {256}


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
        ("lpips", "scale:4.8", "mean", 64, 1),  # three of its images are other images
        ("lpips", "unguided", "mean", 64, 4),
        ("lpips", "scale:4.8", "changed", 8, 1),
        ("lpips", "unguided", "median", 8, 4),
        ("alignment", "unguided", "mean", 8, 1),
        (DIFFERENCE, "scale:4.8", "mean", 64, 1),
    ],
)
def test_an_interval_holds(metric, variant, name, prompts, seeds):
    values = population(metric, variant)
    held, width = coverage(of(metric, name), values, prompts=prompts, seeds=seeds, draws=80)
    assert held >= LEAST - 0.03
    assert width > 0


def test_a_mean_of_few_prompts_is_not_given():
    values = population("lpips", "scale:4.8")
    assert np.isnan(coverage(of("lpips", "mean"), values, prompts=16, seeds=1, draws=20)).all()


def test_an_interval_that_is_given_for_some_draws_alone_is_refused():
    figure = of("lpips", "mean")
    own = figure._replace(
        interval=lambda values: (
            figure.interval(values)
            if values.max() > 0.1
            else figure.interval(values)._replace(lo=np.nan)
        )
    )
    with pytest.raises(AssertionError, match="given for some draws alone"):
        coverage(own, population("lpips", "scale:4.8"), prompts=64, seeds=1, draws=60)


@pytest.mark.slow  # a quarter of an hour
def test_every_interval_holds():
    found = table(populations(), draws=200).dropna(subset=["least"])
    noise = 2.5 * np.sqrt(LEAST * (1 - LEAST) / 200)  # of the worst of dozens of populations
    assert (found["least"] >= LEAST - noise).all()
    assert (found["middle"] >= LEAST).all()
