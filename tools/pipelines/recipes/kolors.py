"""Kolors: the UNet of Stable Diffusion XL, which projects the text of a larger language model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from tools.pipelines.parts.flow_image import guided
from tools.pipelines.parts.unet import (
    POOLED,
    WIDTH,
    build,
    fixed,
    spoken,
    tokenizer,
    xl_networks,
)
from tools.pipelines.small import Small, small


def _networks() -> dict[str, Any]:
    return xl_networks(encoder_hid_dim=WIDTH, encoder_hid_dim_type="text_proj")


@small("KolorsPipeline", "KolorsPAGPipeline")
def from_text(kind: type) -> Small:
    """The prompts are embeddings."""
    return guided(build(kind, **_networks()), POOLED, fixed(kind))


class Reader(ModelMixin, ConfigMixin):
    """In place of ChatGLM: a token's state is the sum of the embeddings up to it."""

    @register_to_config
    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, WIDTH)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> SimpleNamespace:
        """Two layers of a text, (tokens, batch, width) each."""
        embeddings = self.embedding(input_ids) * attention_mask[..., None]
        return SimpleNamespace(hidden_states=(embeddings.cumsum(1).movedim(0, 1),) * 2)


class Words:
    """In place of ChatGLM's tokenizer: it gives the positions of the tokens, too."""

    def __call__(self, texts: list[str], **settings: Any) -> Any:
        """The tokens of texts."""
        tokens = tokenizer()(texts, **settings)
        places = torch.arange(tokens["input_ids"].shape[1])
        tokens["position_ids"] = places.expand_as(tokens["input_ids"])
        return tokens


@small("KolorsImg2ImgPipeline")
def from_image(kind: type) -> Small:
    """It asks for pooled embeddings beside embeddings, and loses them on the way: only words go."""
    parts = _networks() | {"text_encoder": Reader(len(tokenizer())), "tokenizer": Words()}
    return guided(build(kind, **parts), spoken, fixed(kind))
