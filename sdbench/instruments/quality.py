"""Quality of images: one number per image, against a reference image or against the prompt.

A metric is a `Metric` in `METRICS`; `score` checks the input, runs it in pieces that fit in memory and gives a vector.
Means, intervals and comparisons of variants do not belong here.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

import flip_evaluator
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.functional.multimodal import clip_score
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from sdbench.instruments import weights

Images: TypeAlias = Float[Tensor, "n 3 height width"] | Sequence[Image.Image]
Scores: TypeAlias = Float[Tensor, " n"]


@dataclass(frozen=True)
class Metric:
    """How to judge images.

    Attributes:
        name: Its key in `METRICS` and its column in the images table.
        compute: `(images, against)` => one number per image; images are float32, N,3,H,W, in [0, 1]. `against` is the
            reference images, of the same kind, or the list of prompts.
        needs: What `against` is.
        higher_is_better: The direction.
        provenance: What the number depends on besides the images: network, package version, digest of weights.
        option: What a name must add after a colon, such as the CLIP model, passed on to `compute` and `provenance`
            as a last argument; empty if nothing.
        meaning: One line.
    """

    name: str
    compute: Callable[..., Scores]
    needs: Literal["reference", "prompt"]
    higher_is_better: bool
    provenance: Callable[..., dict[str, str]]
    option: str = ""
    meaning: str = ""


METRICS: dict[str, Metric] = {}
_SSIM_WINDOW = 11  # pixels, of a Gaussian of sigma 1.5


def register_metric(metric: Metric) -> None:
    """Add a metric to `METRICS`.

    Raises:
        ValueError: If the name is taken or contains a colon.
    """
    if metric.name in METRICS or ":" in metric.name:
        raise ValueError(
            f"metric name {metric.name!r} is taken or has a colon; taken: {', '.join(METRICS)}"
        )
    METRICS[metric.name] = metric


def score(name: str, images: Images, against: Images | Sequence[str], *, batch: int = 16) -> Scores:
    """Judge each image by one metric.

    Args:
        name: A key of `METRICS`; with its option, as in `clip_score:openai/clip-vit-base-patch16`, if it takes one.
        images: Float tensor N,3,H,W in [0, 1], or RGB PIL images of one size.
        against: One reference image per image, of the same size; or one prompt per image, if the metric needs those.
        batch: Images judged at a time; bounds memory, does not change the numbers.

    Returns:
        Float32 vector of length N on the CPU. NaN where the metric has no finite value: PSNR of identical images,
        alignment with a prompt outside mini-sd's grammar.

    Raises:
        ValueError: For an unknown metric, or images or prompts that are not as above.
    """
    metric, options = find_metric(name)
    pixels = _pixels(images, "images")
    other = (
        _prompts(against, metric)
        if metric.needs == "prompt"
        else _pixels(against, "reference images")
    )
    if len(other) != len(pixels):
        raise ValueError(
            f"{name}: {len(pixels)} images against {len(other)} {metric.needs}s; expected as many"
        )
    if isinstance(other, Tensor) and other.shape != pixels.shape:
        raise ValueError(
            f"{name}: image sizes differ: {tuple(pixels.shape)} against {tuple(other.shape)}"
        )
    with torch.no_grad():
        starts = range(0, len(pixels), batch)
        parts = [
            metric.compute(pixels[i : i + batch], other[i : i + batch], *options) for i in starts
        ]
    return torch.cat(parts).float().cpu()


def find_metric(name: str) -> tuple[Metric, tuple[str, ...]]:
    """The metric of a name such as `lpips` or `clip_score:PATH`, and its option, if it takes one.

    Raises:
        ValueError: If there is none, saying what there is; or if the option is missing or one too many.
    """
    key, _, option = name.partition(":")
    if key not in METRICS:
        raise ValueError(f"unknown metric {name!r}; there are: {', '.join(METRICS)}")
    metric = METRICS[key]
    if bool(option) != bool(metric.option):
        expected = f"{key}:{metric.option}" if metric.option else key
        raise ValueError(f"metric {name!r} should read {expected!r}")
    return metric, (option,) if option else ()


def provenance(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """What each metric's numbers depend on, for the study's record; finds LPIPS's network, or fails, if it is named."""
    found = {name: find_metric(name) for name in names}
    return {name: metric.provenance(*options) for name, (metric, options) in found.items()}


def _pixels(images: Any, what: str) -> Float[Tensor, "n 3 height width"]:
    """Float32 pixels, checked."""
    if not isinstance(images, Tensor):
        images = _from_pil(list(images), what)
    if (
        images.ndim != 4
        or images.shape[1] != 3
        or 0 in images.shape
        or not images.is_floating_point()
    ):
        given = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"{what} must be a float tensor N,3,H,W or RGB PIL images, got {given}")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise ValueError(
            f"{what} must lie in [0, 1], got values from {low.item():g} to {high.item():g}"
        )
    return images.detach().float()


def _from_pil(images: list[Any], what: str) -> Float[Tensor, "n 3 height width"]:
    kinds = {
        (image.mode, image.size) if isinstance(image, Image.Image) else type(image).__name__
        for image in images
    }
    if len(kinds) != 1 or next(iter(kinds))[0] != "RGB":
        raise ValueError(
            f"{what} must be a tensor or RGB PIL images of one size, got {sorted(kinds, key=str)}"
        )
    return torch.stack([pil_to_tensor(image) for image in images]) / 255


def _prompts(against: Any, metric: Metric) -> list[str]:
    if isinstance(against, str | Tensor) or not all(isinstance(prompt, str) for prompt in against):
        raise ValueError(f"{metric.name} needs a list of prompts, got {type(against).__name__}")
    return list(against)


def _lpips(images: Tensor, reference: Tensor) -> Scores:
    return lpips_network(str(images.device))(
        images, reference.to(images.device), normalize=True
    ).flatten()


@cache
def lpips_network(device: str) -> torch.nn.Module:
    """The reference implementation, `lpips` v0.1 on AlexNet, once per process and device.

    Its own constructor would download AlexNet, or, told not to, fill it at random: we load what `weights` found.
    """
    import lpips

    alexnet = weights.resolve()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # lpips calls torchvision by an argument that torchvision deprecates.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        network = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
    for part in network.net.children():  # slice1 to slice5, each with torchvision's indices
        names = {name: alexnet.features[name] for name in part.state_dict()}
        part.load_state_dict(names)
    return network.requires_grad_(False).to(device)


def _lpips_provenance() -> dict[str, str]:
    """The network by its digest: where it was found is this machine's affair, and stands in `sdbench weights`."""
    known = weights.describe()
    identity = {name: known[name] for name in ("network", "sha256")}
    return {"package": f"lpips {version('lpips')}", "heads": "v0.1"} | identity


def _flip(images: Tensor, reference: Tensor) -> Scores:
    return torch.tensor(
        [_flip_of_one(*pair) for pair in zip(_hwc(images), _hwc(reference), strict=True)]
    )


def _flip_of_one(image: np.ndarray, reference: np.ndarray) -> float:
    _, mean_error, _ = flip_evaluator.evaluate(reference, image, "LDR", applyMagma=False)
    return mean_error


def _hwc(images: Tensor) -> Iterable[np.ndarray]:
    return map(np.ascontiguousarray, images.permute(0, 2, 3, 1).cpu().numpy())


def _ssim(images: Tensor, reference: Tensor) -> Scores:
    """Mean over windows that lie wholly inside (Wang et al. 2004); torchmetrics 1.9 would include mirrored borders."""
    if min(images.shape[2:]) < _SSIM_WINDOW:
        raise ValueError(
            f"ssim needs images of at least {_SSIM_WINDOW} pixels a side, got {tuple(images.shape)}"
        )
    _, similarity = structural_similarity_index_measure(
        images,
        reference.to(images.device),
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    border = _SSIM_WINDOW // 2
    return similarity[..., border:-border, border:-border].mean((1, 2, 3))


def _psnr(images: Tensor, reference: Tensor) -> Scores:
    """NaN for identical images: their PSNR is infinite, no mean can hold it, and a cap would be a number we made up."""
    reference = reference.to(images.device)
    ratio = peak_signal_noise_ratio(
        images, reference, data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    return torch.where(ratio.isinf(), torch.nan, ratio)


def _alignment(images: Tensor, prompts: list[str]) -> Scores:
    from sdbench.models.mini_sd import reader

    return reader.alignment(images, prompts)


def _alignment_provenance() -> dict[str, str]:
    from sdbench.models.mini_sd import reader

    return {
        "network": "mini-sd reader",
        "sha256": hashlib.sha256(reader.WEIGHTS.read_bytes()).hexdigest(),
    }


def _clip_score(images: Tensor, prompts: list[str], model: str) -> Scores:
    """One image at a time, since torchmetrics gives a mean; the processor takes values of 0 to 255."""
    clip = _clip(model)
    pairs = zip((images * 255).round().to(torch.uint8), prompts, strict=True)
    return torch.stack([clip_score(image, prompt, lambda: clip) for image, prompt in pairs])


@cache
def _clip(model: str) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    class Clip(CLIPModel):
        """torchmetrics 1.9 expects plain features; transformers 5 wraps them."""

        def get_image_features(self, *args: Any, **kwargs: Any) -> Tensor:
            found = super().get_image_features(*args, **kwargs)
            return getattr(found, "pooler_output", found)

        def get_text_features(self, *args: Any, **kwargs: Any) -> Tensor:
            found = super().get_text_features(*args, **kwargs)
            return getattr(found, "pooler_output", found)

    try:
        return Clip.from_pretrained(
            model, use_safetensors=True
        ).eval(), CLIPProcessor.from_pretrained(model)
    except OSError as error:
        raise ValueError(f"no CLIP model at {model!r}: {str(error).splitlines()[0]}") from error


def _clip_provenance(model: str) -> dict[str, str]:
    parameters = _clip(model)[0].cpu().state_dict()
    return {
        "network": model,
        "package": f"torchmetrics {version('torchmetrics')}",
        "sha256": weights.tensors_sha256(parameters[name] for name in sorted(parameters)),
    }


def _image_reward(images: Tensor, prompts: list[str], model: str) -> Scores:
    network = _reward_network(model)
    pictures = [to_pil_image((image * 255).round().to(torch.uint8)) for image in images.cpu()]
    return torch.tensor(
        [network.score(prompt, picture) for prompt, picture in zip(prompts, pictures, strict=True)]
    )


@cache
def _reward_network(model: str) -> Any:
    """The user's own ImageReward: its package and its weights, by name or by path."""
    try:
        package = importlib.import_module("ImageReward")
    except ImportError as error:
        raise ValueError(
            f"image_reward needs the package image-reward, which does not import here: {error}"
        ) from None
    try:
        return package.load(model).eval()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"no ImageReward model at {model!r}: {str(error).splitlines()[0]}"
        ) from None


def _image_reward_provenance(model: str) -> dict[str, str]:
    parameters = _reward_network(model).cpu().state_dict()
    digest = weights.tensors_sha256(parameters[name] for name in sorted(parameters))
    return {
        "network": model,
        "package": f"image-reward {version('image-reward')}",
        "sha256": digest,
    }


def _of_package(package: str, **settings: str) -> Callable[[], dict[str, str]]:
    return lambda: {"package": f"{package} {version(package)}", **settings}


for _metric in (
    Metric(
        "lpips",
        _lpips,
        "reference",
        False,
        _lpips_provenance,
        meaning="perceptual distance, the reference package, AlexNet v0.1; 0 is identical",
    ),
    Metric(
        "flip",
        _flip,
        "reference",
        False,
        _of_package("flip-evaluator", settings="LDR, 67 pixels per degree"),
        meaning="FLIP, difference seen when two images are flipped between; 0 is identical",
    ),
    Metric(
        "ssim",
        _ssim,
        "reference",
        True,
        _of_package("torchmetrics", settings="Gaussian window of 11 pixels, sigma 1.5, no border"),
        meaning="structural similarity; 1 is identical",
    ),
    Metric(
        "psnr",
        _psnr,
        "reference",
        True,
        _of_package("torchmetrics", settings="peak 1"),
        meaning="peak signal-to-noise ratio in dB; missing for identical images",
    ),
    Metric(
        "alignment",
        _alignment,
        "prompt",
        True,
        _alignment_provenance,
        meaning="share of the caption's attributes that the image shows (mini-sd, read by its own reader)",
    ),
    Metric(
        "clip_score",
        _clip_score,
        "prompt",
        True,
        _clip_provenance,
        option="MODEL",
        meaning="CLIPScore: 100 times the cosine between image and prompt, at least 0, in a CLIP model that you name",
    ),
    Metric(
        "image_reward",
        _image_reward,
        "prompt",
        True,
        _image_reward_provenance,
        option="MODEL",
        meaning="ImageReward, where you have its package `image-reward` and weights: ImageReward-v1.0",
    ),
):
    register_metric(_metric)
