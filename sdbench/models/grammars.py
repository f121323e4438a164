"""The captions that an embedded model brings, and what of other prompts is lost on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdbench.models.emoji_sd import catalogue
from sdbench.models.mini_sd import scenes


@dataclass(frozen=True)
class Grammar:
    """What captions a model knows.

    Args:
        parse: a caption; None where the model's reader cannot judge it.
        words: every word of them.
        held_out: captions of what it never saw in training, from a number of draws and a seed; a
            caption may come twice.
    """

    parse: Callable[[str], Any]
    words: Callable[[], set[str]]
    held_out: Callable[[int, int], list[str]]


def _held_out_scenes(draws: int, seed: int) -> list[str]:
    return scenes.captions(scenes.sample(draws, np.random.default_rng(seed), split="test"))


def _held_out_emoji(draws: int, seed: int) -> list[str]:
    return catalogue.captions(catalogue.held_out(seed)[:draws])


ALIGNMENT = "alignment"  # the metric that reads captions
GRAMMARS = {
    "mini-sd": Grammar(scenes.parse, scenes.words, _held_out_scenes),
    "emoji-sd": Grammar(catalogue.parse, catalogue.words, _held_out_emoji),
}
"""Of the embedded models, by name."""


def held_out_captions(
    count: int, model: str = "mini-sd", *, seed: int = 6, draws: int | None = None
) -> list[str]:
    """Captions of what an embedded model never saw in training, each once; always the same.

    Args:
        count: how many.
        model: in `GRAMMARS`.
        seed: of the draws.
        draws: the captions are the first of so many; a few more than enough by default.

    Raises:
        ValueError: there are not so many.
    """
    drawn = GRAMMARS[model].held_out(draws or 2 * count + 16, seed)
    distinct = list(dict.fromkeys(drawn))[:count]
    if len(distinct) < count:
        raise ValueError(f"{model} has {len(distinct)} held-out captions; {count} were asked for")
    return distinct


def readable(model: str, prompts: Sequence[str]) -> list[str]:
    """The prompts, those empty that the reader of an embedded model cannot judge.

    A caption says by its grammar whose reader judges it, so that the images of one model with the
    captions of another would be judged by the other's. Of a model without a grammar all are kept.
    """
    grammar = GRAMMARS.get(model)
    if grammar is None:
        return list(prompts)
    return ["" if grammar.parse(prompt) is None else prompt for prompt in prompts]


def doubts(model: str, prompts: Sequence[str]) -> list[str]:
    """What an embedded model cannot make of prompts, in sentences; nothing for other models."""
    grammar = GRAMMARS.get(model)
    if grammar is None:
        return []
    sentences = []
    if unread := readable(model, prompts).count(""):
        sentences.append(
            f"alignment cannot be read for {unread} of {len(prompts)} prompts: "
            f"they are no captions of {model}"
        )
    said = {word for prompt in prompts for word in re.findall("[a-z]+", prompt.lower())}
    if unknown := sorted(said - grammar.words()):
        sentences.append(
            f"{model} does not know these words, and splits them into pieces: {', '.join(unknown)}"
        )
    return sentences
