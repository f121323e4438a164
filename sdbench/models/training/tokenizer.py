"""A CLIP tokenizer with a token for every word of a model's captions."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import CLIPTokenizer


def write_tokenizer(folder: Path, words: Collection[str], length: int) -> CLIPTokenizer:
    """Write a byte-level CLIP tokenizer with a token for each of the words, and open it.

    Other words fall apart into bytes, so that any prompt can be encoded.

    Args:
        folder: gets the tokenizer's files.
        words: in lower case, none with a space in it.
        length: tokens to which a caption is padded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = list(_byte_symbols())
    vocabulary += [symbol + "</w>" for symbol in vocabulary]

    merges: list[tuple[str, str]] = []
    for word in sorted(words):
        # The merges so far come first in rank, so extending their outcome leaves every earlier word
        # whole.
        model = BPE(
            {token: i for i, token in enumerate(vocabulary)}, merges, end_of_word_suffix="</w>"
        )
        pieces = Tokenizer(model).encode(word).tokens
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            vocabulary.append(pieces[0] + pieces[1])
            pieces = _merged(pieces, *merges[-1])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]

    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False)
    )
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=length)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _merged(pieces: list[str], left: str, right: str) -> list[str]:
    """The pieces of a word after a merge, which acts wherever its two parts stand together."""
    out: list[str] = []
    for piece in pieces:
        if piece == right and out and out[-1] == left:
            out[-1] = left + right
        else:
            out.append(piece)
    return out


def _byte_symbols() -> str:
    """The 256 printable characters that stand for the bytes in byte-level BPE (GPT-2's table)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return "".join(map(chr, printable + list(range(256, 512 - len(printable)))))
