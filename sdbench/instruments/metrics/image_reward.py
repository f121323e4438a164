"""ImageReward: what people would prefer for a prompt, by the user's own copy of the package."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torchvision.transforms.functional import to_pil_image

from sdbench.instruments import weights
from sdbench.instruments.metric import Metric, Pixels, Scores
from sdbench.models.causes import require_own


def image_reward(images: Pixels, prompts: list[str], model: str) -> Scores:
    """The network's score of each image.

    Source: Xu et al. 2023, arXiv 2304.05977.
    """
    network = reward_network(model)
    # The package takes one prompt with one picture, as it would read it from a file.
    pictures = [to_pil_image((image * 255).round().to(torch.uint8)) for image in images.cpu()]
    pairs = zip(prompts, pictures, strict=True)
    return torch.tensor([network.score(prompt, picture) for prompt, picture in pairs])


@cache
def reward_network(model: str) -> Any:
    """The user's ImageReward, by the name of its weights or their path, once per process.

    Raises:
        ValueError: The package or the weights are missing.
    """
    # By its name: sdbench does not require the package, so a checker cannot know it.
    try:
        package = importlib.import_module("ImageReward")
    except ImportError as error:
        raise ValueError(
            f"image_reward needs the package image-reward, which does not import here: {error}"
        ) from None

    try:
        return package.load(model).eval()
    except (OSError, RuntimeError) as error:
        require_own(error, "image_reward's model cannot be read")
        raise ValueError(
            f"no ImageReward model at {model!r}: {str(error).splitlines()[0]}"
        ) from None


def _provenance(model: str) -> dict[str, str]:
    parameters = reward_network(model).cpu().state_dict()
    return {
        "network": model,
        "package": f"image-reward {version('image-reward')}",
        "sha256": weights.tensors_sha256(parameters[name] for name in sorted(parameters)),
    }


METRIC = Metric(
    "image_reward",
    image_reward,
    "prompt",
    higher_is_better=True,
    provenance=_provenance,
    option="MODEL",
    meaning="ImageReward, where you have its package `image-reward` and weights: ImageReward-v1.0",
    place=7,
)
