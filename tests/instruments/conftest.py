import pytest
import torch


@pytest.fixture(scope="module")
def pair():
    """Four images and noisy copies, in the 256 levels of a PNG."""
    random = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(
        torch.rand(4, 3, 8, 8, generator=random), size=(64, 80), mode="bilinear"
    )
    noisy = (images + 0.05 * torch.randn(images.shape, generator=random)).clamp(0, 1)
    return [(x * 255).round() / 255 for x in (images, noisy)]
