"""Which emoji there are, their captions, and which of them training never sees.

A batch of pictures is an integer array, one row per picture and one column per field of `FIELDS`;
everything here maps such rows to captions and back. The catalogue lists the names, categories and
skin tones of two icon sets; their drawings are in `icons.py`. Nothing here knows of a network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np
from jaxtyping import Bool, Int

CATALOGUE = Path(__file__).with_name("catalogue.tsv")
SIDE = 64
STYLES = ("fluent", "noto")
CATEGORIES = (
    "activities",
    "animals and nature",
    "flags",
    "food and drink",
    "objects",
    "people and body",
    "smileys and emotion",
    "symbols",
    "travel and places",
)
TONES = ("none", "light", "medium light", "medium", "medium dark", "dark")
TONE_WORDS = " skin tone"
STYLE_WORD = " style"

FIELDS = ("name", "tone", "category", "style")
NAME, TONE, CATEGORY, STYLE = range(4)
NAMES_HELD_OUT = 8  # one name in so many is held out in one style
TONES_HELD_OUT = 6  # of one figure in so many, a tone is held out


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """All names, in alphabetical order; a row's name is a place in it."""
    return tuple(line[0] for line in _lines())


@lru_cache(maxsize=1)
def categories() -> Int[np.ndarray, " names"]:
    """The category of every name."""
    return np.array([CATEGORIES.index(line[1]) for line in _lines()])


@lru_cache(maxsize=1)
def pictures() -> Int[np.ndarray, "n 4"]:
    """Every picture of the two sets, in a fixed order."""
    rows = [
        (name, int(tone), CATEGORIES.index(category), style)
        for name, (_, category, *tones) in enumerate(_lines())
        for style, drawn in enumerate(tones)
        for tone in drawn
    ]
    return np.array(rows)


@lru_cache(maxsize=1)
def _lines() -> tuple[list[str], ...]:
    """Name, category, and for each style the digits of the tones in which it is drawn."""
    return tuple(line.split("\t") for line in CATALOGUE.read_text("utf-8").splitlines())


def held_out_name(rows: Int[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
    """Which pictures show a name in a style in which training never sees it.

    It sees the name in the other style. A checksum of the name decides, so the split does not move
    when the catalogue grows.
    """
    in_both = np.array([bool(line[2] and line[3]) for line in _lines()])
    sums = np.array([crc32(name.encode()) for name in names()])
    chosen = in_both & (sums % NAMES_HELD_OUT == 0)
    styles = sums // NAMES_HELD_OUT % len(STYLES)
    return chosen[rows[:, NAME]] & (styles[rows[:, NAME]] == rows[:, STYLE])


def held_out_tone(rows: Int[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
    """Which pictures show a tone that training never sees on this figure in this style.

    It sees the figure in the style's other tones.
    """
    sums = np.array([crc32(f"{names()[row[NAME]]}, {STYLES[row[STYLE]]}".encode()) for row in rows])
    tones = 1 + sums // TONES_HELD_OUT % (len(TONES) - 1)
    return (sums % TONES_HELD_OUT == 0) & (tones == rows[:, TONE]) & ~held_out_name(rows)


def split(rows: Int[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
    """Which pictures training sees."""
    return ~(held_out_name(rows) | held_out_tone(rows))


def weights(rows: Int[np.ndarray, "n 4"]) -> np.ndarray:
    """The share of each picture in training: a figure with tones counts three times, not six."""
    toned = np.zeros(len(names()), dtype=bool)
    toned[rows[rows[:, TONE] > 0, NAME]] = True
    weight = np.where(toned[rows[:, NAME]], 0.5, 1.0)
    return weight / weight.sum()


def sample(count: int, rng: np.random.Generator) -> Int[np.ndarray, "count 4"]:
    """Pictures of the training split, in the shares that training has of them."""
    rows = _learnt()
    return rows[rng.choice(len(rows), size=count, p=weights(rows))]


@lru_cache(maxsize=1)
def _learnt() -> Int[np.ndarray, "n 4"]:
    rows = pictures()
    return rows[split(rows)]


def held_out(seed: int) -> Int[np.ndarray, "n 4"]:
    """Held-out pictures in an order that a seed decides.

    A held-out name is there once, in one of its tones, and a held-out tone once.
    """
    rng = np.random.default_rng(seed)
    rows = pictures()
    named = rng.permutation(rows[held_out_name(rows)])
    _, first = np.unique(named[:, NAME], return_index=True)
    return rng.permutation(np.concatenate([named[first], rows[held_out_tone(rows)]]))


def captions(rows: Int[np.ndarray, "n 4"]) -> list[str]:
    """`NAME[, TONE skin tone], CATEGORY, STYLE style` for every row."""
    return [
        ", ".join(
            [
                names()[name],
                *([TONES[tone] + TONE_WORDS] if tone else []),
                CATEGORIES[category],
                STYLES[style] + STYLE_WORD,
            ]
        )
        for name, tone, category, style in rows
    ]


def parse(caption: str) -> Int[np.ndarray, 4] | None:
    """The row of a caption; None where it is not in the grammar of `captions`."""
    parts = caption.strip().lower().split(", ")
    if len(parts) == len(FIELDS) - 1:
        parts.insert(TONE, TONES[0] + TONE_WORDS)
    if len(parts) != len(FIELDS):
        return None
    name, tone, category, style = parts
    row = [
        _places().get(name),
        _numbered(TONES).get(tone.removesuffix(TONE_WORDS)),
        _numbered(CATEGORIES).get(category),
        _numbered(STYLES).get(style.removesuffix(STYLE_WORD)),
    ]
    return None if None in row else np.array(row)


@lru_cache(maxsize=1)
def _places() -> dict[str, int]:
    return _numbered(names())


def _numbered(words: Iterable[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}


def words() -> set[str]:
    """Every word of every caption, the comma too."""
    phrases: Sequence[str] = (*names(), *CATEGORIES, *TONES[1:], TONE_WORDS, *STYLES, STYLE_WORD)
    return {word for phrase in phrases for word in re.findall("[a-z]+|[0-9]", phrase)} | {","}


def corrupt(
    rows: Int[np.ndarray, "n 4"],
    chance: float | Sequence[float],
    rng: np.random.Generator,
) -> Int[np.ndarray, "n 4"]:
    """The same rows, every field replaced with the given chance by that of another picture.

    A figure that has no tone gets none, and a tone is replaced by a tone.

    Args:
        rows: pictures.
        chance: for all fields, or one for each of `FIELDS`.
        rng: decides.
    """
    out = rows.copy()
    everything = pictures()
    replaced = rng.random(out.shape) < np.asarray(chance)
    others = everything[rng.integers(len(everything), size=out.shape), np.arange(len(FIELDS))]
    others[:, TONE] = rng.integers(1, len(TONES), size=len(rows))
    replaced[:, TONE] &= rows[:, TONE] > 0
    out[replaced] = others[replaced]
    return out
