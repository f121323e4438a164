"""A tokenizer and a text encoder for pipelines that do not take embeddings of prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import PreTrainedTokenizerFast

from tools.pipelines.parts.flow_image import WIDTH

SPECIAL = ("<pad>", "<unk>", "<s>")
WORDS = 60
"""That the tokenizer knows: w0, w1, ..."""
TEMPLATE = (
    "{% for message in messages %}"
    "{{ message.content if message.content is string else message.content[0].text }}"
    "{% endfor %}"
)


def tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """A token for each word of the prompts below, for `more`, and one for all others."""
    known = [*SPECIAL, *(f"w{word}" for word in range(WORDS))]
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(known)}, "<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        additional_special_tokens=list(more),
        chat_template=TEMPLATE,
        model_max_length=512,
    )


def prompt(image: int, seed: int) -> str:
    """Words of an image and a seed; the second image has one more."""
    return " ".join(f"w{15 * seed + 5 * image + place}" for place in range(2 + image))


def prompts(images: int, seed: int) -> dict[str, Any]:
    """One for each image."""
    return {"prompt": [prompt(image, seed) for image in range(images)]}


def one_prompt(images: int, seed: int) -> dict[str, Any]:
    """For classes that take a single prompt, however many images they make of it."""
    return {"prompt": prompt(0, seed), "num_images_per_prompt": images}


class Reader(ModelMixin, ConfigMixin):
    """In place of a language model: an embedding for each token, and a multiple for each layer."""

    @register_to_config
    def __init__(self, layers: int = 3, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        # Some pipelines look at what a certain layer gives.
        language_model = nn.Module()
        language_model.layers = nn.ModuleList([nn.Identity()])
        self.model = nn.Module()
        self.model.language_model = language_model

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """The layers of a text, (batch, tokens, width) each."""
        last = self.model.language_model.layers[-1](self.embedding(input_ids))
        layers = self.config.layers
        states = tuple(last * (layer + 1) / layers for layer in range(layers))
        return SimpleNamespace(hidden_states=states, last_hidden_state=last)


class Looker:
    """In place of a processor of pictures: each is one token."""

    merge_size = 1

    def __call__(self, images: Any, return_tensors: str) -> dict[str, torch.Tensor]:
        """What a text encoder gets beside the tokens."""
        return {"pixel_values": torch.zeros(1, 1), "image_grid_thw": torch.ones(1, 3).long()}


class Processor:
    """In place of a processor of texts and pictures: it reads the texts alone."""

    def __init__(self, words: PreTrainedTokenizerFast) -> None:
        self.tokenizer = words
        self.image_processor = Looker()

    def __call__(self, text: list[str], images: Any = None, **settings: Any) -> Any:
        """The tokens of texts."""
        return self.tokenizer(text, **settings)

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        """The tokens of a system prompt: one."""
        return [[0]]
