import pytest
import torch
import torchvision
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

from sdbench.instruments import weights
from sdbench.instruments.metrics.lpips import lpips, lpips_network
from sdbench.instruments.quality import provenance, score


def test_lpips_is_the_package_s_own_result_with_torchvisions_alexnet(
    pair, random_alexnet, monkeypatch
):
    import lpips as package

    monkeypatch.setattr(torchvision.models, "alexnet", lambda **_: random_alexnet)
    official = package.LPIPS(net="alex", verbose=False)
    with torch.no_grad():
        expected = official(*pair, normalize=True).flatten()
    assert torch.equal(score("lpips", *pair), expected)
    assert expected.min() > 0


def test_lpips_heads_and_scaling_agree_with_torchmetrics(pair, random_alexnet, monkeypatch):
    monkeypatch.setattr(torchvision.models, "alexnet", lambda **_: random_alexnet)
    images, reference = pair
    expected = [
        learned_perceptual_image_patch_similarity(*one, net_type="alex", normalize=True)
        for one in zip(images.split(1), reference.split(1), strict=True)
    ]
    torch.testing.assert_close(score("lpips", *pair), torch.stack(expected))


def test_lpips_is_built_once_and_leaves_the_global_generator_alone(pair, random_alexnet):
    before = torch.get_rng_state()
    score("lpips", *pair)
    assert torch.equal(torch.get_rng_state(), before)
    assert lpips_network("cpu") is lpips_network("cpu")


@pytest.mark.parametrize(("height", "width"), [(31, 31), (31, 64), (64, 31)])
def test_the_smallest_images_that_lpips_states_are_the_smallest_that_alexnet_takes(
    random_alexnet, height, width
):
    images = torch.zeros(1, 3, height, width)
    assert score("lpips", images, images).item() == 0
    smaller = images[:, :, : height - 1] if height == 31 else images[..., : width - 1]
    with pytest.raises(RuntimeError, match="Output size is too small"):
        lpips(smaller, smaller)


def test_lpips_takes_64_pixels(random_alexnet):
    black, white = torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    assert score("lpips", black, white).isfinite().all()
    assert score("lpips", black, black).item() == 0


def test_lpips_provenance_names_the_network_and_no_place_on_this_machine(random_alexnet):
    record = provenance(["lpips"])["lpips"]
    assert set(record) == {"package", "heads", "network", "sha256"}
    assert record["sha256"] == weights.FEATURES_SHA256
    assert record["package"].startswith("lpips 0.1")
