import sys
import types

import numpy as np
import pytest
import skimage.metrics
import torch
import torchvision
from flip_evaluator import evaluate
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchvision.transforms.functional import to_pil_image

from sdbench.instruments import quality, weights
from sdbench.instruments.quality import (
    METRICS,
    Metric,
    find_metric,
    provenance,
    register_metric,
    score,
)


@pytest.fixture(scope="module")
def pair():
    """Four images and noisy copies, in the 256 levels of a PNG."""
    random = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(
        torch.rand(4, 3, 8, 8, generator=random), size=(64, 80), mode="bilinear"
    )
    noisy = (images + 0.05 * torch.randn(images.shape, generator=random)).clamp(0, 1)
    return [(x * 255).round() / 255 for x in (images, noisy)]


@pytest.fixture
def random_alexnet(monkeypatch):
    """LPIPS and torchvision with the same made-up AlexNet, so that no network is needed."""
    torch.manual_seed(0)
    alexnet = torchvision.models.alexnet()
    found = weights.AlexNet(alexnet.features.state_dict(), "made up")
    monkeypatch.setattr(weights, "resolve", lambda path=None: found)
    quality.lpips_network.cache_clear()
    yield alexnet
    quality.lpips_network.cache_clear()


def as_hwc(image):
    return image.permute(1, 2, 0).numpy()


def test_lpips_is_the_package_s_own_result_with_torchvisions_alexnet(
    pair, random_alexnet, monkeypatch
):
    import lpips

    monkeypatch.setattr(torchvision.models, "alexnet", lambda **_: random_alexnet)
    official = lpips.LPIPS(net="alex", verbose=False)
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
    assert quality.lpips_network("cpu") is quality.lpips_network("cpu")


def test_lpips_takes_64_pixels(random_alexnet):
    black, white = torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    assert score("lpips", black, white).isfinite().all()
    assert score("lpips", black, black).item() == 0


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


def test_flip_agrees_with_its_own_reading_of_files(pair, tmp_path):
    for name, image in (("test", pair[0][2]), ("reference", pair[1][2])):
        to_pil_image(image).save(tmp_path / f"{name}.png")
    _, expected, _ = evaluate(str(tmp_path / "reference.png"), str(tmp_path / "test.png"), "LDR")
    assert score("flip", *pair)[2].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["flip", "ssim", "psnr"])
def test_batches_and_pil_images_give_the_same_numbers(pair, name):
    whole = score(name, *pair)
    assert torch.equal(score(name, *pair, batch=3), whole)
    pil = [[to_pil_image(image) for image in images] for images in pair]
    torch.testing.assert_close(score(name, *pil), whole)


GREY = torch.full((2, 3, 16, 16), 0.5)


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


def test_alignment_hands_images_and_prompts_to_the_reader(monkeypatch):
    from sdbench.models.mini_sd import reader

    monkeypatch.setattr(
        reader, "alignment", lambda images, captions: images[:, 0, 0, 0] + len(captions[0])
    )
    prompts = ["a", "bb"]
    assert score("alignment", GREY, prompts, batch=1).tolist() == [1.5, 2.5]


@pytest.mark.parametrize("prompts", ["ab", GREY, [1, 2]])
def test_prompts_must_be_a_list_of_texts(prompts):
    with pytest.raises(ValueError, match="alignment needs a list of prompts"):
        score("alignment", GREY, prompts)


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "red</w>", "blue</w>", "star</w>"]
    text = {
        **sizes,
        "vocab_size": len(words),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    processor = CLIPProcessor(image_processor=images, tokenizer=tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


def test_clip_score_is_100_times_the_cosine_or_zero(pair, small_clip):
    folder, model, processor = small_clip
    prompts = ["a red star", "a blue star", "star", "a star a"]
    inputs = processor(
        text=prompts, images=[to_pil_image(x) for x in pair[0]], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        cosines = model(**inputs).logits_per_image.diag() / model.logit_scale.exp()
    found = score(f"clip_score:{folder}", pair[0], prompts)
    torch.testing.assert_close(found, (100 * cosines).clamp(min=0), rtol=1e-3, atol=1e-3)
    model.visual_projection.weight.data.neg_()  # so that one of the two has positive cosines, whatever the random start
    model.save_pretrained(folder / "opposite")
    processor.save_pretrained(folder / "opposite")
    opposite = score(f"clip_score:{folder / 'opposite'}", pair[0], prompts)
    torch.testing.assert_close(opposite, (-100 * cosines).clamp(min=0), rtol=1e-3, atol=1e-3)
    model.visual_projection.weight.data.neg_()
    assert (found + opposite > 0).all()


def test_clip_provenance_changes_with_the_weights(small_clip):
    folder, model, _ = small_clip
    name = f"clip_score:{folder}"
    told = provenance([name])[name]
    assert told["network"] == str(folder)
    assert told["sha256"] == weights.tensors_sha256(
        model.state_dict()[key] for key in sorted(model.state_dict())
    )


def test_missing_clip_model_is_named():
    with pytest.raises(ValueError, match="no CLIP model at 'no/such'"):
        score("clip_score:no/such", GREY, ["a", "b"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "lpsip",
            "unknown metric 'lpsip'; there are: lpips, flip, ssim, psnr, alignment, clip_score",
        ),
        ("clip_score", "'clip_score' should read 'clip_score:MODEL'"),
        ("ssim:7", "'ssim:7' should read 'ssim'"),
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


def test_lpips_provenance_names_the_network_and_no_place_on_this_machine(random_alexnet):
    told = provenance(["lpips"])["lpips"]
    assert set(told) == {"package", "heads", "network", "sha256"}
    assert told["sha256"] == weights.FEATURES_SHA256
    assert told["package"].startswith("lpips 0.1")


def test_image_reward_is_the_packages_own_score(pair, monkeypatch):
    class Network(torch.nn.Linear):
        def score(self, prompt, picture):
            return len(prompt) + picture.size[0] / 1000

    package = types.SimpleNamespace(load=lambda model: Network(1, 1))
    monkeypatch.setitem(sys.modules, "ImageReward", package)
    quality._reward_network.cache_clear()
    found = score("image_reward:v1", pair[0], ["a" * (index + 1) for index in range(len(pair[0]))])
    width = pair[0].shape[3]
    assert found.tolist() == pytest.approx(
        [index + 1 + width / 1000 for index in range(len(pair[0]))]
    )
    quality._reward_network.cache_clear()


def test_image_reward_without_its_package_is_an_error(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    quality._reward_network.cache_clear()
    with pytest.raises(ValueError, match="image_reward needs the package image-reward"):
        score("image_reward:v1", pair[0], ["a"] * len(pair[0]))
