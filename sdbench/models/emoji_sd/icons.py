"""The drawings of the two icon sets: from their npm packages to pictures of 64 x 64 pixels.

Only training needs them. Unpacked, the packages lie in one folder, each under its own name:
`fluent-emoji-flat` and `noto`, as `README.md` in the weights' folder describes.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sdbench.models.emoji_sd import catalogue
from sdbench.models.emoji_sd.catalogue import CATEGORIES, SIDE, STYLES, TONES

PACKAGES = dict(zip(STYLES, ("fluent-emoji-flat", "noto"), strict=True))
# Fluent says "woman-dark", Noto "woman-dark-skin-tone".
TONED = re.compile(r"(.+?)-(light|medium-light|medium|medium-dark|dark)(-skin-tone)?")
# Two people of two tones, and old spellings of what the set has under another name.
LEFT_OUT = re.compile(r"skin-tone|-tone\d$")


def read(icons: Path, style: str) -> dict[tuple[str, int], tuple[str, str]]:
    """The drawings of one set.

    Args:
        icons: folder of the unpacked packages.
        style: of `STYLES`.

    Returns:
        Category and SVG by name and tone; of drawings that are alike, the first.
    """
    folder = icons / PACKAGES[style]
    package = json.loads((folder / "icons.json").read_text("utf-8"))
    listed = json.loads((folder / "metadata.json").read_text("utf-8"))["categories"]
    category = {icon: _spelled(title) for title, icons_of in listed.items() for icon in icons_of}

    drawings: dict[tuple[str, int], tuple[str, str]] = {}
    seen: set[str] = set()
    for icon in sorted(category.keys() & package["icons"].keys()):
        name, tone = _name_and_tone(icon, package["icons"])
        svg = _svg(package, package["icons"][icon])
        if LEFT_OUT.search(name) or svg in seen:
            continue
        seen.add(svg)
        drawings[name.replace("-", " "), tone] = (category[icon], svg)
    return drawings


def _name_and_tone(icon: str, icons: dict[str, Any]) -> tuple[str, int]:
    """A figure has all five tones: "police-car-light" is no light tone."""
    parts = TONED.fullmatch(icon)
    if parts is None:
        return icon, 0
    name, tone, suffix = parts[1], parts[2], parts[3] or ""
    tones = [word.replace(" ", "-") for word in TONES[1:]]
    if any(f"{name}-{other}{suffix}" not in icons for other in tones):
        return icon, 0
    return name, 1 + tones.index(tone)


def _spelled(title: str) -> str:
    """A category as captions have it: "Food & Drink" becomes "food and drink"."""
    return title.replace("&", "and").lower()


def _svg(package: dict[str, Any], icon: dict[str, Any]) -> str:
    """A whole SVG file of an icon in Iconify's JSON."""
    box = {"left": 0, "top": 0, "width": 16, "height": 16} | {
        key: value for key, value in {**package, **icon}.items() if key != "icons"
    }
    view = f"{box['left']} {box['top']} {box['width']} {box['height']}"
    # Square, with the icon in its middle: a few are not square themselves.
    head = f'width="{SIDE}" height="{SIDE}" viewBox="{view}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {head}>{icon["body"]}</svg>'


def write_catalogue(icons: Path, file: Path) -> None:
    """Write the catalogue of the unpacked packages, from which all captions are made."""
    sets = [read(icons, style) for style in STYLES]
    lines = []
    for name in sorted({name for drawings in sets for name, _ in drawings}):
        tones = [[tone for tone in range(len(TONES)) if (name, tone) in d] for d in sets]
        # Where the sets disagree on a category, Fluent's holds.
        first = next(d[name, drawn[0]] for d, drawn in zip(sets, tones, strict=True) if drawn)
        assert first[0] in CATEGORIES
        lines.append("\t".join([name, first[0], *("".join(map(str, drawn)) for drawn in tones)]))
    file.write_text("\n".join(lines) + "\n", "utf-8")


def draw(icons: Path) -> UInt8[np.ndarray, "n 64 64 3"]:
    """All pictures of `catalogue.pictures`, on white.

    Raises:
        ValueError: the packages have no drawing of one that the catalogue lists.
    """
    sets = [read(icons, style) for style in STYLES]
    images = []
    for name, tone, _, style in catalogue.pictures():
        key = (catalogue.names()[name], int(tone))
        if key not in sets[style]:
            raise ValueError(f"{PACKAGES[STYLES[style]]} has no '{key[0]}' in tone '{TONES[tone]}'")
        images.append(_rasterised(sets[style][key][1]))
    return np.stack(images)


def _rasterised(svg: str) -> UInt8[np.ndarray, "64 64 3"]:
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, background="white")
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
