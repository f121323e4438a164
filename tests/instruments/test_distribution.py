import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from sdbench.instruments.distribution import (
    _added,
    frechet_difference,
    frechet_distance,
    image_features,
)


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


def test_frechet_distance_of_gaussians_is_the_one_that_is_known():
    """Of a shift: the squared length of the shift; of spreads: the squared difference, by feature.

    Source: Dowson and Landau 1982.
    """
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2, 100_000, 4, generator=generator, dtype=torch.float64)
    assert frechet_distance(normal[0] + 3, normal[1]) == pytest.approx(4 * 9, rel=0.01)
    assert frechet_distance(2 * normal[0], normal[1]) == pytest.approx(4 * 1, rel=0.02)
    moved = frechet_difference(
        normal[0] + 3, normal[0] + 1, normal[1], torch.arange(100_000) % 50_000
    )
    assert moved.estimate == pytest.approx(4 * 9 - 4 * 1, rel=0.01)
    assert 0 < moved.hi - moved.lo < 0.5


def test_what_an_image_adds_to_a_frechet_distance_is_its_derivative(sets):
    """Which weights one image a little more, and looks how much farther the set then is."""
    own, reference = (part.double() for part in sets)
    means, covariance = own.mean(0), torch.cov(own.T)

    def distance(image, weight):
        more = own[image] - means
        moved = covariance + weight * (torch.outer(more, more) - covariance)
        root = sqrtm(moved.numpy() @ torch.cov(reference.T).numpy()).real
        shift = means + weight * more - reference.mean(0)
        return float(shift @ shift + moved.trace()) - 2 * np.trace(root)

    slopes = [(distance(image, 1e-4) - distance(image, -1e-4)) / 2e-4 for image in (7, 8)]
    added = _added(own, reference)
    assert float(added[7] - added[8]) == pytest.approx(slopes[0] - slopes[1], rel=1e-4)


def test_a_frechet_difference_of_few_prompts_or_images_has_no_ends():
    generator = torch.Generator().manual_seed(0)
    first, second, reference = torch.randn(3, 100, 8, generator=generator)
    few = frechet_difference(first, second, reference, torch.arange(100) % 63)
    assert np.isnan([few.lo, few.hi]).all()
    enough = frechet_difference(first, second, reference, torch.arange(100) % 64)
    assert enough.lo < enough.estimate < enough.hi
    wide = torch.randn(3, 100, 101, generator=generator)
    assert np.isnan(frechet_difference(*wide, torch.arange(100)).lo)


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
