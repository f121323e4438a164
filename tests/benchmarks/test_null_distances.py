import pytest
import torch

from benchmarks.null_distances import coverage, population

INTERVALS = [
    "kernel distance, references",
    "kernel difference, references",
    "kernel difference, one model",
    "Fréchet difference, one model",
]


def test_every_interval_holds_0_where_nothing_differs():
    """The fast form of the benchmark, in which the jackknife of a Fréchet distance held 0 never."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(12, 12, generator=generator)
    features = torch.randn(2000, 12, generator=generator) @ mixed / 3 + 1
    table = coverage(features, draws=60, prompts=64, seeds=2, size=96)
    assert table["interval"].tolist() == INTERVALS
    assert table["holds"].ge(0.87).all(), table


@pytest.mark.slow
def test_every_interval_holds_0_in_the_features_of_drawn_scenes():
    table = coverage(population(2048), draws=200, prompts=128, seeds=2, size=512)
    assert table["holds"].between(0.92, 0.99).all(), table
