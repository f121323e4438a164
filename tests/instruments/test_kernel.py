import numpy as np
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from sdbench.instruments import kernel
from sdbench.instruments.distribution import _AsTheyAre
from sdbench.instruments.kernel import Reference, kernel_difference, kernel_distance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all")
def test_the_distance_is_that_of_torchmetrics():
    own, reference = normal(80, 6), 1.3 * normal(80, 6, seed=1) + 0.5
    metric = KernelInceptionDistance(feature=_AsTheyAre(6), subsets=1, subset_size=80)
    metric.set_dtype(torch.float64)
    metric.update(reference, real=True)
    metric.update(own, real=False)
    found = kernel_distance(own, torch.arange(80), Reference.of(reference))
    assert found.estimate == pytest.approx(float(metric.compute()[0]), rel=1e-6)


def test_every_row_of_the_reference_counts_whatever_is_in_memory(monkeypatch):
    own, reference = normal(70, 6), 1.3 * normal(170, 6, seed=1)
    gram = [(a @ b.T / 6 + 1) ** 3 for a, b in ((own, own), (reference, reference))]
    off = [float((k.sum() - k.trace()) / (len(k) * (len(k) - 1))) for k in gram]
    expected = sum(off) - 2 * float(((own @ reference.T / 6 + 1) ** 3).mean())
    whole = kernel_distance(own, torch.arange(70), Reference.of(reference))
    assert whole.estimate == pytest.approx(expected)
    monkeypatch.setattr(kernel, "AT_ONCE", 32)
    assert kernel_distance(own, torch.arange(70), Reference.of(reference)) == pytest.approx(whole)


def test_a_shift_of_the_mean_has_the_distance_that_is_known():
    """Of one-dimensional normals around a and 0: E (xy + 1)^3 in closed form."""
    shift = 0.7
    square = 1 + shift**2
    own = 1 + 3 * shift**2 + 3 * square**2 + (shift**3 + 3 * shift) ** 2
    cross = 1 + 3 * square
    known = own + (1 + 3) - 2 * cross
    found = kernel_distance(
        normal(1500, 1) + shift, torch.arange(1500), Reference.of(normal(1000, 1, seed=1))
    )
    assert found.lo < known < found.hi
    assert found.hi - found.lo < known


def test_images_of_one_prompt_are_not_taken_for_independent():
    """The same images twice: nothing new is known, and nothing changes."""
    own, other, reference = (
        normal(100, 5),
        normal(100, 5, seed=1),
        Reference.of(normal(200, 5, seed=2)),
    )
    twice = [part.repeat_interleave(2, 0) for part in (own, other)]
    prompts = torch.arange(100).repeat_interleave(2)
    assert kernel_distance(twice[0], prompts, reference) == pytest.approx(
        kernel_distance(own, torch.arange(100), reference)
    )
    assert kernel_difference(*twice, prompts, reference) == pytest.approx(
        kernel_difference(own, other, torch.arange(100), reference)
    )


def test_a_difference_is_that_of_the_distances_and_changes_its_sign_with_its_order():
    own, other, reference = (
        normal(90, 5) + 0.3,
        normal(90, 5, seed=1),
        Reference.of(normal(200, 5, seed=2)),
    )
    prompts = torch.arange(90)
    found = kernel_difference(own, other, prompts, reference)
    apart = [kernel_distance(part, prompts, reference).estimate for part in (own, other)]
    assert found.estimate == pytest.approx(apart[0] - apart[1])
    back = kernel_difference(other, own, prompts, reference)
    assert back == pytest.approx((-found.estimate, -found.hi, -found.lo))


def test_there_is_an_interval_from_64_prompts_on():
    own, reference = normal(64, 5), Reference.of(normal(100, 5, seed=2))
    for prompts, has_ends in ((torch.arange(64), True), (torch.arange(64) % 63, False)):
        for found in (
            kernel_distance(own, prompts, reference),
            kernel_difference(own, own + 1, prompts, reference),
        ):
            assert np.isfinite([found.lo, found.hi]).all() == has_ends


def test_a_distance_repeats_and_leaves_the_global_generator():
    before = torch.get_rng_state()
    found = [
        kernel_distance(normal(70, 4), torch.arange(70), Reference.of(normal(90, 4, seed=1)))
        for _ in range(2)
    ]
    assert found[0] == found[1]
    assert torch.equal(before, torch.get_rng_state())
