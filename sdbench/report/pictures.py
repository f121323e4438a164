"""The images and videos that a page shows, within it: small, as many as it has room for."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from sdbench.records.animations import FRAME_MS
from sdbench.records.columns import FLICKER, WORST
from sdbench.records.files import inside, read_image, read_pixels
from sdbench.records.names import BASELINE
from sdbench.records.store import Results

FORMS = ((256, 85), (256, 60), (192, 60), (128, 60), (64, 60))
"""Most pixels of a side, and WebP's quality."""
VIDEO_FORMS = (
    (256, 75, 48),
    (256, 60, 32),
    (192, 60, 32),
    (128, 60, 24),
    (96, 60, 16),
    (64, 60, 16),
)
"""The same of a video's frames, and how many of them at most."""
PICTURES_BYTES = 3_000_000  # of all images in the page, which with plotly's script stays below 8 MB
MAX_PROMPTS = 16
MAX_VIDEO_PROMPTS = 4


def pictures(results: Results) -> dict[str, Any]:
    """The first repeat's images or videos of the first prompts, as WebP for the page.

    Of a study of videos also `places`, the numbers of the frames that are shown, of `frames`; and
    `frame_ms`, how long each stays.
    """
    # Where its first repeat failed, a variant is shown by the next.
    images = results.images.merge(results.runs[["unit", "repeat"]], on="unit")
    images = images[images["repeat"] == images.groupby("variant")["repeat"].transform("min")]
    is_video = "frames" in images
    first = images.drop_duplicates("prompt_id").head(MAX_VIDEO_PROMPTS if is_video else MAX_PROMPTS)
    prompts = first.set_index("prompt_id")["prompt"].to_dict()

    # A study may be published without its images, or with some of them.
    kept = images[images["prompt_id"].isin(list(prompts)) & images["path"].notna()]
    kept = kept[kept["path"].map(lambda path: inside(results.folder, path).is_file()).astype(bool)]
    paths = [results.folder / path for path in kept["path"]]
    rows = [{str(name): value for name, value in row.items()} for row in kept.to_dict("records")]
    shown: list[dict[str, Any]] = [
        {
            "prompt": str(row["prompt_id"]),
            "seed": str(row["seed"]),
            "variant": str(row["variant"]),
        }
        for row in rows
    ]

    further: dict[str, Any] = {}
    if is_video and shown:
        videos = fitting_videos(paths)
        for picture, frames, row in zip(shown, videos, rows, strict=True):
            picture |= {"frames": frames, "text": _said_of(row)}
        further = _course(int(kept["frames"].max()), max(map(len, videos)))
    else:
        for picture, data in zip(shown, fitting(paths), strict=True):
            picture["data"] = data
    return {
        "prompts": prompts,
        "variants": list(dict.fromkeys(picture["variant"] for picture in shown)),
        "images": shown or None,
        **further,
    }


def fitting(paths: Sequence[Path]) -> list[str]:
    """Images in the first form in which they fit into the page together; else in the last."""
    data: list[str] = []
    for side, quality in FORMS:
        data = [_webp(read_image(path), side, quality) for path in paths]
        if sum(map(len, data)) <= PICTURES_BYTES:
            break
    return data


def fitting_videos(paths: Sequence[Path]) -> list[list[str]]:
    """Videos as lists of frames, as `fitting` says of images."""
    largest, _, most = VIDEO_FORMS[0]
    videos = [_some_frames(path, largest, most) for path in paths]
    data: list[list[str]] = []
    for side, quality, most in VIDEO_FORMS:
        data = [
            [_webp(video[place].copy(), side, quality) for place in _places(len(video), most)]
            for video in videos
        ]
        if sum(len(frame) for video in data for frame in video) <= PICTURES_BYTES:
            break
    return data


def _some_frames(path: Path, side: int, most: int) -> list[Image.Image]:
    """Small frames of a video: all would take much memory."""
    frames = read_pixels(path)
    shown = [Image.fromarray(frames[place]) for place in _places(len(frames), most)]
    for frame in shown:
        frame.thumbnail((side, side))
    return shown


def _places(frames: int, most: int) -> NDArray[np.intp]:
    """The numbers of frames at equal distances, the first and the last among them."""
    return np.linspace(0, frames - 1, min(most, frames)).round().astype(int)


def _course(frames: int, shown: int) -> dict[str, Any]:
    """Which frames are shown, and for how long each, so that a video takes its time."""
    every = _places(frames, VIDEO_FORMS[0][2])
    return {
        "places": every[_places(len(every), shown)].tolist(),
        "frames": frames,
        "frame_ms": round(FRAME_MS * frames / shown),
    }


def _said_of(video: dict[str, Any]) -> str:
    """What was measured of a video, in words: for those who do not see it, too."""
    said = [f"{video['frames']} frames"]
    if _is_known(video, "lpips"):
        worst = video[f"lpips{WORST}"]
        said.append(f"LPIPS to {BASELINE} {video['lpips']:.3f}, in the worst frame {worst:.3f}")
    if _is_known(video, FLICKER):
        said.append(f"LPIPS between neighbouring frames {video[FLICKER]:.3f}")
    return "; ".join(said)


def _is_known(video: dict[str, Any], name: str) -> bool:
    return name in video and not pd.isna(video[name])


def _webp(image: Image.Image, side: int, quality: int) -> str:
    file = io.BytesIO()
    image.thumbnail((side, side))
    image.save(file, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
