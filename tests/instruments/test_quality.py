import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from sdbench.instruments import quality
from sdbench.instruments.quality import (
    METRICS,
    Metric,
    find_metric,
    provenance,
    register_metric,
    require_size,
    score,
)


@pytest.mark.parametrize("name", ["flip", "ssim", "psnr"])
def test_batches_and_pil_images_give_the_same_numbers(pair, name):
    whole = score(name, *pair)
    assert torch.equal(score(name, *pair, batch=3), whole)
    pil = [[to_pil_image(image) for image in images] for images in pair]
    torch.testing.assert_close(score(name, *pil), whole)


GREY = torch.full((2, 3, 16, 16), 0.5)


@pytest.mark.parametrize("level", [0, 100, 213, 255])
def test_a_flat_picture_is_like_itself(level):
    flat = torch.full((1, 3, 64, 64), level / 255)
    assert score("ssim", flat, flat.clone()).tolist() == [1.0]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (GREY * 2 - 1.5, r"\[0, 1\], got values from -0.5 to -0.5"),
        (GREY * 255, r"\[0, 1\], got values from 127.5"),
        (GREY * torch.nan, r"\[0, 1\], got values from nan"),
        ((GREY * 255).to(torch.uint8), r"float tensor N,3,H,W .* got torch.uint8"),
        (GREY[0], r"got torch.float32 of shape \(3, 16, 16\)"),
        (GREY[:, :1], r"of shape \(2, 1, 16, 16\)"),
        (GREY[:0], r"of shape \(0, 3, 16, 16\)"),
        (GREY[:1], "1 images against 2 references"),
        (GREY[:, :, :8], r"sizes differ: \(2, 3, 8, 16\) against \(2, 3, 16, 16\)"),
        ([], "got \\[\\]"),
        (
            [to_pil_image(GREY[0]).convert("L")] * 2,
            r"RGB PIL images of one size, got \[\('L', \(16, 16\)\)\]",
        ),
        ([np.zeros((16, 16, 3))] * 2, r"got \['ndarray'\]"),
    ],
)
def test_bad_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        score("psnr", images, GREY)


def spoilt(value, *images):
    """Grey images of which some have a value or two that are not finite."""
    pixels = torch.full((6, 3, 16, 16), 0.5)
    for count, image in enumerate(images, start=1):
        pixels[image].view(-1)[:count] = value
    return pixels


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["lpips", "flip", "ssim", "psnr", "alignment", "clip_score:none"])
def test_every_metric_refuses_images_that_are_not_finite(name, value):
    against = ["a"] * 6 if METRICS[name.partition(":")[0]].needs == "prompt" else spoilt(0.5)
    with pytest.raises(
        ValueError,
        match=r"^images .* of 768 values each, not finite are 1 of image 2, 2 of image 4$",
    ):
        score(name, spoilt(value, 2, 4), against)


def test_reference_images_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match=r"^reference images .* not finite are 1 of image 0$"):
        score("psnr", spoilt(0.5), spoilt(torch.nan, 0))


def test_of_many_images_that_are_not_finite_some_are_named():
    with pytest.raises(ValueError, match=r"1 of image 0, .* 4 of image 3 and of 2 more images$"):
        score("psnr", spoilt(torch.nan, *range(6)), spoilt(0.5))


def test_finite_images_out_of_range_are_not_called_otherwise():
    with pytest.raises(ValueError, match=r"got values from 127.5 to 127.5$"):
        score("psnr", GREY * 255, GREY)


@pytest.mark.parametrize(("height", "width"), [(30, 30), (30, 64), (64, 30), (1, 1)])
def test_images_smaller_than_a_metric_takes_are_refused_at_once(height, width):
    images = torch.full((1, 3, height, width), 0.5)
    message = f"lpips needs images of at least 31 pixels a side, not {height} x {width} pixels"
    with pytest.raises(ValueError, match=message):
        score("lpips", images, images)


def test_every_metric_that_does_not_take_a_size_is_named():
    require_size(["lpips", "ssim", "alignment"], 64, 64)
    with pytest.raises(
        ValueError,
        match=r"lpips .* least 31 .*; ssim .* least 11 .*; alignment .* 64 pixels a side",
    ):
        require_size(["lpips", "flip", "ssim", "psnr", "alignment"], 8, 64)


@pytest.mark.parametrize("prompts", ["ab", GREY, [1, 2]])
def test_prompts_must_be_a_list_of_texts(prompts):
    with pytest.raises(ValueError, match="alignment needs a list of prompts"):
        score("alignment", GREY, prompts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "lpsip",
            "unknown metric 'lpsip'; there are: lpips, flip, ssim, psnr, alignment, clip_score",
        ),
        ("clip_score", "'clip_score' must be written as 'clip_score:MODEL'"),
        ("ssim:7", "'ssim:7' must be written as 'ssim'"),
    ],
)
def test_bad_metric_names_say_what_there_is(name, message):
    with pytest.raises(ValueError, match=message):
        find_metric(name)


def test_a_registered_metric_is_scored_and_cannot_be_registered_twice(monkeypatch):
    monkeypatch.setattr(quality, "METRICS", dict(METRICS))
    brightness = Metric(
        "brightness",
        lambda a, b: (a - b).mean((1, 2, 3)),
        "reference",
        True,
        lambda: {"package": "us"},
    )
    register_metric(brightness)
    assert score("brightness", GREY + 0.25, GREY).tolist() == [0.25, 0.25]
    assert provenance(["brightness"]) == {"brightness": {"package": "us"}}
    with pytest.raises(ValueError, match="'brightness' is taken"):
        register_metric(brightness)
