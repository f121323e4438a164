"""A video as one file: a WebP animation without loss, which any browser plays.

Pillow writes it, and it gives back the very pixels that were made, which metrics then judge.
Frames that equal the one before them are not stored again: it stays for longer. Where all are equal
the encoder leaves a single picture without a duration, so their number stands in the file, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

SUFFIX = ".webp"
FRAME_MS = 100
"""How long a viewer shows a frame. The rate that a model was trained on is not known here."""
MOST_VALUES = 2**32
"""Bytes of pixels beyond which a file is taken for a damaged one."""


def write_animation(path: Path, frames: UInt8[np.ndarray, "frames height width 3"]) -> None:
    """Write a video, frame by frame."""
    first, *others = map(Image.fromarray, frames)
    about = Image.Exif()
    about[ExifTags.Base.ImageDescription] = str(len(frames))
    # The fastest method: others save a tenth of the bytes and take several times as long.
    first.save(
        path,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=FRAME_MS,
        lossless=True,
        quality=0,
        method=0,
        exif=about,
    )


def frames_of(animation: Any) -> UInt8[np.ndarray, "frames height width 3"]:
    """The frames of a video, each as often as it was written.

    Args:
        animation: as `PIL.Image.open` gives it.

    Raises:
        ValueError: it is no WebP file, or says that it is larger than any video.
    """
    if animation.format != "WEBP":
        raise ValueError(f"it is {animation.format}; a video is stored as WebP")
    width, height = animation.size

    frames: list[UInt8[np.ndarray, "height width 3"]] = []
    for number in range(animation.n_frames):
        animation.seek(number)
        animation.load()
        times = max(1, round(animation.info["duration"] / FRAME_MS))
        if animation.n_frames == 1:
            times = int(animation.getexif().get(ExifTags.Base.ImageDescription, 1))
        if (len(frames) + times) * 3 * height * width > MOST_VALUES:
            raise ValueError(f"it has more than {len(frames)} frames of {width} x {height} pixels")
        frames += [np.asarray(animation.convert("RGB"))] * times
    return np.stack(frames)
