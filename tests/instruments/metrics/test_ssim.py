import numpy as np
import pytest
import skimage.metrics
import torch

from sdbench.instruments.quality import score


def as_hwc(image):
    return image.permute(1, 2, 0).numpy()


def test_ssim_agrees_with_scikit_image(pair):
    settings = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1.0,
    }
    pairs = zip(map(as_hwc, pair[0]), map(as_hwc, pair[1]), strict=True)
    expected = [
        skimage.metrics.structural_similarity(a, b, channel_axis=2, **settings) for a, b in pairs
    ]
    np.testing.assert_allclose(score("ssim", *pair), expected, rtol=1e-4)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="at least 11 pixels"):
        score("ssim", torch.ones(1, 3, 10, 64), torch.ones(1, 3, 10, 64))
