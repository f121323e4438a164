import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from sdbench.instruments.distribution import frechet_distance, image_features, kernel_distance


@pytest.fixture
def sets():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(300, 6, generator=generator), 1.3 * torch.randn(
        400, 6, generator=generator
    ) + 0.5


def test_frechet_distance_is_its_formula(sets):
    a, b = (part.double().numpy() for part in sets)
    means, covariances = [part.mean(0) for part in (a, b)], [np.cov(part.T) for part in (a, b)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(
        covariances[0] + covariances[1] - 2 * root
    )
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-4)


def test_kernel_distance_is_the_unbiased_formula(sets):
    a, b = sets[0].double().numpy(), sets[1][:300].double().numpy()

    def mean_off_diagonal(kernel):
        return (kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    expected = (
        mean_off_diagonal(kernel(a, a)) + mean_off_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean()
    )
    assert kernel_distance(sets[0], sets[1][:300]) == pytest.approx(expected, rel=1e-3)


def test_a_distance_repeats_and_leaves_the_global_generator(sets):
    before = torch.get_rng_state()
    assert kernel_distance(*sets) == kernel_distance(*sets)
    assert torch.equal(before, torch.get_rng_state())


def test_features_of_the_reader_are_what_its_last_layer_reads():
    from sdbench.models.mini_sd.reader import _shipped

    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = image_features(images, "reader")
    assert features.shape == (3, 160)
    assert torch.allclose(
        _shipped().layers[-1](features), torch.cat(_shipped()(images), dim=1), atol=1e-5
    )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="unknown features 'clip'; there are: reader, inception"):
        image_features(torch.rand(1, 3, 64, 64), "clip")
    with pytest.raises(ValueError, match="takes images of 3 x 64 x 64"):
        image_features(torch.rand(1, 3, 32, 32), "reader")
