"""Captioned scenes of one or two shapes: the data that mini-sd and its reader are trained on.

A batch of scenes is an integer array, one row per scene and one column per field of `FIELDS`;
everything here maps such arrays to captions or pixels and back. Nothing here knows of a network.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

SIDE = 64
GRID = 4  # pixels between the possible centres of objects
SIZES = ("large", "small")
TEXTURES = ("plain", "striped", "dotted")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
RELATIONS = ("alone", "left of", "right of", "above", "below")

FIELDS = (
    "size",
    "texture",
    "colour",
    "shape",
    "relation",
    "size_2",
    "texture_2",
    "colour_2",
    "shape_2",
    "background",
)
WORDS = (SIZES, TEXTURES, COLOURS, SHAPES, RELATIONS, SIZES, TEXTURES, COLOURS, SHAPES, COLOURS)
# Where the fields stand in a row.
FIRST = slice(0, 4)
RELATION = 4
SECOND = slice(5, 9)
BACKGROUND = 9
ABSENT = -1  # the second object's fields of a scene with one object

RGB = np.array(
    [
        [0.86, 0.16, 0.16],
        [0.96, 0.55, 0.10],
        [0.96, 0.88, 0.18],
        [0.16, 0.62, 0.24],
        [0.15, 0.32, 0.86],
        [0.56, 0.22, 0.70],
        [0.08, 0.08, 0.08],
        [0.95, 0.95, 0.95],
    ],
    dtype=np.float32,
)
# The second tone of a texture: light on the dark colours, dark on the light ones.
_TONE = (RGB @ np.array([0.299, 0.587, 0.114]) < 0.5).astype(np.float32)[:, None]
TEXTURE_RGB = (0.42 * RGB + 0.58 * _TONE).astype(np.float32)

_OBJECT = r"(?:a|an) (large|small)(?: (plain|striped|dotted))? (\w+) (\w+)"
_CAPTION = re.compile(
    rf"{_OBJECT}(?: (left of|right of|above|below) {_OBJECT})? on (?:a|an) (\w+) background"
)


def held_out(objects: Int[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
    """Whether each object's (texture, colour, shape) is in the held-out set.

    The set is a Latin design: one colour for each of the 18 (texture, shape) pairs, so that every
    pair of attributes is still seen in training while the triple never is.

    Args:
        objects: columns size, texture, colour, shape.

    Returns:
        Boolean vector of length n; False for absent objects.
    """
    _, texture, colour, shape = objects.T
    return (colour == (3 * texture + shape) % len(COLOURS)) & (texture != ABSENT)


def sample(
    n: int, rng: np.random.Generator, *, split: Literal["train", "test"]
) -> Int[np.ndarray, "n 10"]:
    """Draw the attributes of n scenes.

    Args:
        n: number of scenes, at least 1.
        rng: source of all randomness.
        split: "train" has no held-out object; in "test" the first object of every scene is held
            out.

    Returns:
        Integer array with the columns of `FIELDS`.
    """
    accepted: list[np.ndarray] = []
    count = 0
    while count < n:
        rows = np.stack([rng.integers(len(words), size=2 * n) for words in WORDS], axis=1)

        # Two scenes of five have one object.
        alone = rng.random(2 * n) < 0.4
        rows[:, RELATION] = np.where(alone, 0, rng.integers(1, len(RELATIONS), size=2 * n))
        rows[alone, SECOND] = ABSENT

        # An object of the background's colour cannot be seen, two alike cannot be told apart.
        first = held_out(rows[:, FIRST])
        second = held_out(rows[:, SECOND])
        visible = (rows[:, 2] != rows[:, BACKGROUND]) & (rows[:, 7] != rows[:, BACKGROUND])
        distinct = (rows[:, FIRST] != rows[:, SECOND]).any(axis=1)
        wanted = visible & distinct & (first if split == "test" else ~(first | second))
        accepted.append(rows[wanted])
        count += int(wanted.sum())
    return np.concatenate(accepted)[:n]


def captions(scenes: Int[np.ndarray, "n 10"]) -> list[str]:
    """The caption of each scene, in the grammar of the design document."""

    def name(row: Int[np.ndarray, " 10"], at: int) -> str:
        size, texture, colour, shape = (WORDS[at + k][row[at + k]] for k in range(4))
        return " ".join(word for word in ("a", size, texture, colour, shape) if word != "plain")

    texts = []
    for row in scenes:
        pair = f" {RELATIONS[row[RELATION]]} {name(row, 5)}" if row[RELATION] else ""
        texts.append(f"{name(row, 0)}{pair} on a {COLOURS[row[BACKGROUND]]} background")
    return texts


def words() -> set[str]:
    """Every word of every caption."""
    # "plain" and "alone" stand in no caption: they say that nothing is said.
    said = {word for words in WORDS for phrase in words for word in phrase.split()}
    return said - {"plain", "alone"} | {"a", "on", "background"}


def parse(caption: str) -> Int[np.ndarray, " 10"] | None:
    """The scene that a caption describes, or None when it is not in the grammar."""
    match = _CAPTION.fullmatch(caption.strip().lower())
    if match is None:
        return None
    size, texture, colour, shape, relation, size_2, texture_2, colour_2, shape_2, background = (
        match.groups()
    )
    first = (size, texture or "plain", colour, shape)
    second = (size_2, texture_2 or "plain", colour_2, shape_2) if relation else (None,) * 4
    fields = (*first, relation or "alone", *second, background)

    row = []
    for word, words in zip(fields, WORDS, strict=True):
        if word is not None and word not in words:
            return None
        row.append(ABSENT if word is None else words.index(word))
    return np.array(row)


def corrupt(
    scenes: Int[np.ndarray, "n 10"], probability: float, rng: np.random.Generator
) -> Int[np.ndarray, "n 10"]:
    """Replace each attribute by a random one of its kind, as the captions of web images are wrong.

    An object that would become a held-out one keeps its own attributes, so that no held-out caption
    is ever made.

    Args:
        scenes: scenes as they are drawn.
        probability: chance that a field is replaced (by a uniform draw, which may repeat the old
            value), in [0, 1].
        rng: source of all randomness.

    Returns:
        A new array of the same shape; the number of objects never changes.
    """
    kinds = [len(words) for words in WORDS]
    random = np.stack([rng.integers(k, size=len(scenes)) for k in kinds], axis=1)
    random[:, RELATION] = rng.integers(1, len(RELATIONS), size=len(scenes))
    replace = rng.random(scenes.shape) < probability
    alone = scenes[:, RELATION] == 0
    replace[alone, RELATION] = False
    replace[alone, SECOND] = False

    noisy = np.where(replace, random, scenes)
    for fields in (FIRST, SECOND):
        leaked = held_out(noisy[:, fields]) & ~held_out(scenes[:, fields])
        noisy[leaked, fields] = scenes[leaked, fields]
    return noisy


def draw(
    scenes: Int[np.ndarray, "n 10"], rng: np.random.Generator, *, chunk: int = 512
) -> UInt8[np.ndarray, "n 64 64 3"]:
    """Draw scenes as anti-aliased 64 x 64 RGB pictures.

    Position and background gradient are random; the attributes fix everything else. Objects are
    centred on every fourth pixel, as the latents of an autoencoder that shrinks images four times
    are: an object then has one pattern of latents, not sixteen, which a small model can learn in an
    hour.
    """
    chunks = [_draw_chunk(scenes[i : i + chunk], rng) for i in range(0, len(scenes), chunk)]
    return np.concatenate(chunks)


def _draw_chunk(
    scenes: Int[np.ndarray, "n 10"], rng: np.random.Generator
) -> UInt8[np.ndarray, "n 64 64 3"]:
    n = len(scenes)
    centre = np.arange(SIDE, dtype=np.float32) + 0.5
    grid = np.stack(np.meshgrid(centre, centre), axis=-1)  # 64 64 (x, y)

    # Background: its colour under a linear gradient in a random direction.
    angle = rng.uniform(0, 2 * np.pi, n)
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32) / SIDE
    slope = rng.uniform(0.10, 0.30, n).astype(np.float32)
    ramp = np.einsum("hwk,nk->nhw", grid - SIDE / 2, direction) * slope[:, None, None]
    canvas = (
        RGB[scenes[:, BACKGROUND]][:, None, None, :] * (1 + ramp[..., None])
        + 0.04 * ramp[..., None]
    )

    # The second object covers the first where they meet.
    for fields, (positions, radii) in zip((FIRST, SECOND), _placement(scenes, rng), strict=True):
        present = np.flatnonzero(scenes[:, fields.start] != ABSENT)
        if len(present) == 0:
            continue
        objects = scenes[present, fields]
        radius = radii[present]
        local = grid[None] - positions[present][:, None, None, :]  # n 64 64 2

        coverage = _coverage(local / radius[:, None, None, None], objects[:, 3], radius)
        colour = _surface(local, objects, radius)
        canvas[present] += coverage[..., None] * (colour - canvas[present])
    return (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _placement(
    scenes: Int[np.ndarray, "n 10"], rng: np.random.Generator
) -> list[tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]]:
    """Centre and radius in pixels of the first and the second object of each scene."""
    n = len(scenes)
    relation = scenes[:, RELATION]
    out = []
    for fields, low_side in ((FIRST, (1, 3)), (SECOND, (2, 4))):
        small = scenes[:, fields.start] == SIZES.index("small")
        radius = np.where(small, 9, 15)
        lowest = np.where(small, 12, 16)  # of the centre, so that the object is whole

        # One object stands anywhere; two stand in one line, on the two sides of the middle.
        free = _on_grid(rng, lowest[:, None], SIDE - lowest[:, None], (n, 2))
        along = _on_grid(rng, lowest, np.where(small, 20, 16), n)
        along = np.where(np.isin(relation, low_side), along, SIDE - along)
        across = _on_grid(rng, SIDE // 2 - GRID, SIDE // 2 + GRID, n)

        side_by_side = np.stack([along, across], axis=1)
        position = np.where((relation <= 2)[:, None], side_by_side, side_by_side[:, ::-1])
        position = np.where((relation == 0)[:, None], free, position)
        out.append((position.astype(np.float32), radius.astype(np.float32)))
    return out


def _on_grid(rng: np.random.Generator, lowest: Any, highest: Any, size: Any) -> np.ndarray:
    """Random multiples of `GRID` from `lowest` to `highest`, both included."""
    return GRID * rng.integers(lowest // GRID, highest // GRID + 1, size=size)


def _surface(
    local: Float[np.ndarray, "n h w 2"],
    objects: Int[np.ndarray, "n 4"],
    radius: Float[np.ndarray, " n"],
) -> Float[np.ndarray, "n h w 3"]:
    """Colour of every pixel of each object: two tones mixed by the texture, lit from one side."""
    x = local[..., 0]
    y = local[..., 1]
    mix = np.zeros(x.shape, dtype=np.float32)
    striped = objects[:, 1] == 1
    dotted = objects[:, 1] == 2
    wave = np.sin((x[striped] + y[striped]) * (2 * np.pi / 8))
    mix[striped] = (0.5 + 2.0 * wave).clip(0, 1)
    cell = (local[dotted] + 3) % 6 - 3
    mix[dotted] = (2.4 - np.hypot(cell[..., 0], cell[..., 1])).clip(0, 1)

    # The light comes from the upper left.
    light = 1 - 0.16 * (x + y) / radius[:, None, None]
    colour = objects[:, 2]
    tones = (
        RGB[colour][:, None, None, :] * (1 - mix[..., None])
        + TEXTURE_RGB[colour][:, None, None, :] * mix[..., None]
    )
    return tones * light[..., None]


def _coverage(
    p: Float[np.ndarray, "n h w 2"],
    shape: Int[np.ndarray, " n"],
    radius: Float[np.ndarray, " n"],
) -> Float[np.ndarray, "n h w"]:
    """Share of each pixel inside the shape, from its signed distance in units of the radius."""
    distance = np.empty(p.shape[:-1], dtype=np.float32)
    for index, name in enumerate(SHAPES):
        chosen = shape == index
        distance[chosen] = _DISTANCE[name](p[chosen, ..., 0], p[chosen, ..., 1])
    return (0.5 - distance * radius[:, None, None]).clip(0, 1)


# Signed distances of points from the edges of the shapes, in units of the radius.
Points: TypeAlias = Float[np.ndarray, "*points"]


def _triangle(x: Points, y: Points) -> Points:
    half = np.sqrt(3) / 2
    return np.maximum(y, np.maximum(half * x, -half * x) - y / 2) - 0.55


def _star(x: Points, y: Points) -> Points:
    sector = np.pi / 5
    # The angle from the nearest tip: a star is one half tip, folded over.
    folded = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    radius = np.hypot(x, y)
    tip = 1.12
    notch = 0.50
    edge = np.array([notch * np.cos(sector) - tip, notch * np.sin(sector)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (radius * np.cos(folded) - tip) * normal[0] + radius * np.sin(folded) * normal[1]


def _cross(x: Points, y: Points) -> Points:
    x = np.abs(x)
    y = np.abs(y)
    return np.minimum(np.maximum(x - 1, y - 0.36), np.maximum(y - 1, x - 0.36))


_DISTANCE = {
    "circle": lambda x, y: np.hypot(x, y) - 0.95,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.82,
    "triangle": _triangle,
    "star": _star,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.76) - 0.24,
    "cross": _cross,
}
