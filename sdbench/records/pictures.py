"""A picture of any kind that Pillow opens, as 8-bit RGB the way a viewer shows it.

Which errors a reader of files turns into its own is in `files.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

# What a colour in the file becomes when Pillow unpacks pixels of that form to 8 bits. Pillow gives
# the transparent colour as it stands in the file.
_UNPACKED = {
    "L;2": lambda value: value * 85,
    "L;4": lambda value: value * 17,
    "RGB;16B": lambda value: value >> 8,
}


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture upright, in 8-bit RGB, on white where it is transparent.

    Of an animation it is the first frame. Of 16 bits the upper 8 are taken, as Pillow does with
    colours of 16 bits.

    Args:
        image: as `PIL.Image.open` gives it, not yet loaded.

    Raises:
        ValueError: numbers without a known white: floats, or whole ones beyond 16 bits.
    """
    # The form of its pixels in the file is known until the pixels are loaded.
    form = _form(image)
    upright = ImageOps.exif_transpose(image)
    transparent = upright.info.get("transparency")

    if upright.mode == "F":
        raise ValueError("its pixels are floats of an unknown range; save it with 8 bits")
    if upright.mode.startswith("I"):
        return _of_wide_greys(np.asarray(upright), form, transparent)
    if not upright.has_transparency_data:
        return upright.convert("RGB")

    if upright.mode in ("L", "RGB") and form in _UNPACKED:
        upright.info["transparency"] = _unpacked(transparent, form)
    # Pillow knows no direct way from grey with multiplied alpha.
    if upright.mode == "La":
        upright = upright.convert("LA")
    return _on_white(upright.convert("RGBA"))


def _form(image: Image.Image) -> str:
    """Pillow's word for how the pixels are packed in the file; nothing where there is none."""
    tiles: Any = getattr(image, "tile", None)
    args: Any = tiles[0].args if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return str(first)


def _of_wide_greys(
    values: Shaped[np.ndarray, "height width"], form: str, transparent: int | None
) -> Image.Image:
    """Greys of 16 bits, in whatever type Pillow keeps them."""
    lowest, highest = int(values.min()), int(values.max())
    # In 32 bits small numbers may be of 8 bits: of 16 all of them would be black.
    is_unclear = form.startswith("I;32") and highest <= 0xFF
    if lowest < 0 or highest > 0xFFFF or is_unclear:
        raise ValueError(
            f"its pixels are whole numbers from {lowest} to {highest}, of an unknown range; "
            "save it with 8 or 16 bits"
        )

    # Pillow unpacks 12 bits to 16 without scaling them.
    bits = 12 if form == "I;12" else 16
    greys: UInt8[np.ndarray, "height width"] = (values >> (bits - 8)).astype(np.uint8)
    grey = Image.fromarray(greys)
    if transparent is None:
        return grey.convert("RGB")
    opaque = np.where(values == transparent, 0, 255).astype(np.uint8)
    return _on_white(Image.merge("LA", (grey, Image.fromarray(opaque))).convert("RGBA"))


def _unpacked(colour: Any, form: str) -> Any:
    """A transparent colour in the unit of the pixels that Pillow gives."""
    scale = _UNPACKED[form]
    return tuple(map(scale, colour)) if isinstance(colour, tuple) else scale(colour)


def _on_white(image: Image.Image) -> Image.Image:
    """An image with alpha over a white one."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
