"""CLIPScore: how near an image is to its prompt in a CLIP model of the user's, by torchmetrics."""

from __future__ import annotations

from functools import cache, partial
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional import multimodal

from sdbench.instruments import weights
from sdbench.instruments.metric import Metric, Pixels, Scores
from sdbench.models.causes import require_own

Features = Float[Tensor, "rows width"]


def clip_score(images: Pixels, prompts: list[str], model: str) -> Scores:
    """100 times the cosine between each image and its prompt, at least 0.

    A prompt that is longer than the model reads loses its last words, but keeps the end-of-text
    token: from that one CLIP takes the features of the text.

    Source: Hessel et al. 2021, arXiv 2104.08718.
    """
    network, processor = _clip(model)

    # torchmetrics 1.9 by itself would cut the end-of-text token off.
    read = partial(processor, truncation=True, max_length=_longest(network, processor.tokenizer))

    # The processor takes values of 0 to 255.
    pairs = zip((images * 255).round().to(torch.uint8), prompts, strict=True)
    # One image at a time, since torchmetrics gives a mean.
    return torch.stack(
        [multimodal.clip_score(image, prompt, lambda: (network, read)) for image, prompt in pairs]
    )


def _longest(network: Any, tokenizer: Any) -> int:
    """Tokens of the longest text that a CLIP model reads, both ends included."""
    # A tokenizer that was saved without its length gives a huge number.
    positions: int = network.config.text_config.max_position_embeddings
    return min(positions, tokenizer.model_max_length)


@cache
def _clip(model: str) -> tuple[Any, Any]:
    """A CLIP model and its processor, once per process."""
    from transformers import CLIPModel, CLIPProcessor

    class Clip(CLIPModel):
        """torchmetrics 1.9 expects plain features; transformers 5 wraps them."""

        def get_image_features(self, *args: Any, **kwargs: Any) -> Features:
            features = super().get_image_features(*args, **kwargs)
            return getattr(features, "pooler_output", features)

        def get_text_features(self, *args: Any, **kwargs: Any) -> Features:
            features = super().get_text_features(*args, **kwargs)
            return getattr(features, "pooler_output", features)

    try:
        clip = Clip.from_pretrained(model, use_safetensors=True).eval()
        processor = CLIPProcessor.from_pretrained(model)
    except OSError as error:
        require_own(error, "clip_score's model cannot be read")
        raise ValueError(f"no CLIP model at {model!r}: {str(error).splitlines()[0]}") from error

    # torchmetrics asks for padding, of which a single text needs none.
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return clip, processor


def _provenance(model: str) -> dict[str, str]:
    parameters = _clip(model)[0].cpu().state_dict()
    return {
        "network": model,
        "package": f"torchmetrics {version('torchmetrics')}",
        "sha256": weights.tensors_sha256(parameters[name] for name in sorted(parameters)),
    }


METRIC = Metric(
    "clip_score",
    clip_score,
    "prompt",
    higher_is_better=True,
    provenance=_provenance,
    option="MODEL",
    meaning=(
        "CLIPScore: 100 times the cosine between image and prompt, at least 0, "
        "in a CLIP model that you name"
    ),
    place=6,
)
