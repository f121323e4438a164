"""Tiny tokenizers and encoders of texts, for the classes that read the prompts themselves."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

PROMPTS = ("a red star", "a blue ring")
"""One for each image."""
ANOTHER = "a small green cross"
NEGATIVE = "plain"
SPECIAL = ("<pad>", "</s>", "<unk>", "<|vision_start|>")
CHAT = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def word_tokenizer(length: int = 16) -> PreTrainedTokenizerFast:
    """A token for every word of the prompts, and one for all others."""
    words = sorted({word for text in (*PROMPTS, ANOTHER, NEGATIVE) for word in text.split()})
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """The same for messages of roles."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def t5(width: int, tokenizer: PreTrainedTokenizerFast) -> T5EncoderModel:
    """An encoder of one layer."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config).eval()
