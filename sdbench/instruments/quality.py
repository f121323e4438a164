"""Quality of images: one number per image, against a reference image or against the prompt.

`score` checks the input, runs a metric in pieces that fit in memory and gives a vector. The metrics
are the files in `metrics/`, and those that users register. Means, intervals and comparisons of
variants do not belong here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from sdbench.instruments import metrics
from sdbench.instruments.metric import Metric as Metric
from sdbench.instruments.metric import Pixels, Scores

Images: TypeAlias = Pixels | Sequence[Image.Image]

METRICS: dict[str, Metric] = {}
LISTED = 4  # images that an error names


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
        name: A key of `METRICS`; with its option, as in
            `clip_score:openai/clip-vit-base-patch16`, if it takes one.
        images: Float tensor N,3,H,W in [0, 1], or RGB PIL images of one size.
        against: One reference image per image, of the same size; or one prompt per image, if the
            metric needs those.
        batch: Images judged at a time; bounds memory, does not change the numbers.

    Returns:
        Float32 vector of length N on the CPU. NaN where the metric has no finite value: PSNR of
        identical images, alignment with a prompt outside mini-sd's grammar.

    Raises:
        ValueError: For an unknown metric, for images or prompts that are not as above, or for
            images smaller than the metric takes.
    """
    metric, options = find_metric(name)

    pixels = _pixels(images, "images")
    other: Pixels | list[str]
    if metric.needs == "prompt":
        other = _prompts(against, metric)
    else:
        other = _pixels(against, "reference images")

    if len(other) != len(pixels):
        raise ValueError(
            f"{name}: {len(pixels)} images against {len(other)} {metric.needs}s; "
            "each image needs one"
        )
    if isinstance(other, Tensor) and other.shape != pixels.shape:
        raise ValueError(
            f"{name}: image sizes differ: {tuple(pixels.shape)} against {tuple(other.shape)}"
        )
    # Where it reads one size alone, it says so itself once a prompt makes it read.
    if metric.only_side is None:
        require_size([name], *pixels.shape[2:])

    # A metric sees a few images at a time: LPIPS of a thousand would not fit in memory.
    with torch.no_grad():
        vectors = [
            metric.compute(pixels[start : start + batch], other[start : start + batch], *options)
            for start in range(0, len(pixels), batch)
        ]
    return torch.cat(vectors).float().cpu()


def find_metric(name: str) -> tuple[Metric, tuple[str, ...]]:
    """The metric of a name such as `lpips` or `clip_score:PATH`, and its option, if it takes one.

    Raises:
        ValueError: If there is none, saying what there is; or if the option is missing or one too
            many.
    """
    key, _, option = name.partition(":")
    if key not in METRICS:
        raise ValueError(f"unknown metric {name!r}; there are: {', '.join(METRICS)}")
    metric = METRICS[key]
    if bool(option) != bool(metric.option):
        expected = f"{key}:{metric.option}" if metric.option else key
        raise ValueError(f"metric {name!r} must be written as {expected!r}")
    return metric, (option,) if option else ()


def require_size(names: Iterable[str], height: int, width: int) -> None:
    """Refuse metrics that do not take images of a size in pixels.

    Raises:
        ValueError: What each of them takes.
    """
    misfits = [find_metric(name)[0].misfit(height, width) for name in names]
    if any(misfits):
        raise ValueError("; ".join(filter(None, misfits)))


def provenance(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """What each metric's numbers depend on, for the study's record.

    If `lpips` is named, its network is looked for, which fails where there is none.
    """
    # All names are checked before the first network is looked for.
    metrics_of = {name: find_metric(name) for name in names}
    return {name: metric.provenance(*options) for name, (metric, options) in metrics_of.items()}


def _pixels(images: Any, what: str) -> Pixels:
    """Float32 pixels, checked."""
    if not isinstance(images, Tensor):
        images = _from_pil(list(images), what)
    if (
        images.ndim != 4
        or images.shape[1] != 3
        or 0 in images.shape
        or not images.is_floating_point()
    ):
        kind = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"{what} must be a float tensor N,3,H,W or RGB PIL images, got {kind}")

    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise ValueError(
            f"{what} must lie in [0, 1], got values from {low.item():g} to {high.item():g}"
            f"{_not_finite(images)}"
        )
    return images.detach().float()


def _not_finite(images: Pixels) -> str:
    """How many values of which images are not finite, as the end of a sentence."""
    counts = (~images.isfinite()).flatten(1).sum(dim=1).tolist()
    found = [f"{count} of image {index}" for index, count in enumerate(counts) if count]
    if not found:
        return ""
    more = f" and of {len(found) - LISTED} more images" if len(found) > LISTED else ""
    return f"; of {images[0].numel()} values each, not finite are {', '.join(found[:LISTED])}{more}"


def _from_pil(images: list[Any], what: str) -> Pixels:
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


def _own_metrics() -> list[Metric]:
    """The entry of every file in `metrics/`, in their order."""
    # They are looked up, not listed, so that a metric is added in one file.
    files = pkgutil.iter_modules(metrics.__path__, f"{metrics.__name__}.")
    entries = [importlib.import_module(file.name).METRIC for file in files]
    return sorted(entries, key=lambda metric: metric.place)


for _metric in _own_metrics():
    register_metric(_metric)
