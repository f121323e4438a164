import numpy as np
import skimage.metrics
import torch

from sdbench.instruments.quality import score


def as_hwc(image):
    return image.permute(1, 2, 0).numpy()


def test_psnr_agrees_with_scikit_image(pair):
    pairs = zip(map(as_hwc, pair[0]), map(as_hwc, pair[1]), strict=True)
    expected = [skimage.metrics.peak_signal_noise_ratio(b, a, data_range=1.0) for a, b in pairs]
    np.testing.assert_allclose(score("psnr", *pair), expected, rtol=1e-5)


def test_psnr_of_identical_images_is_missing_not_infinite(pair):
    images, noisy = pair
    assert score("psnr", images, torch.cat([images[:1], noisy[1:]])).isnan().tolist() == [
        True,
        False,
        False,
        False,
    ]
