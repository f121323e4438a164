"""A study's images: as they are stored, read again and scored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdbench.instruments.quality import find_metric, score
from sdbench.instruments.video_quality import judged
from sdbench.models.grammars import ALIGNMENT, readable
from sdbench.records.animations import SUFFIX, write_animation
from sdbench.records.files import inside, read_pixels
from sdbench.study.study import PICTURES, Study
from sdbench.study.units import Unit


def eight_bit(
    images: Float[Tensor, "n *frames 3 height width"],
) -> Float[Tensor, "n *frames 3 height width"]:
    """Images as a file gives them back: of 256 values in [0, 1], in float32 on the CPU."""
    return (images.float().clamp(0, 1) * 255).round().cpu() / 255


def stored_pixels(images: Float[Tensor, "n *frames 3 height width"]) -> NDArray[np.uint8]:
    """Images as they are stored: (n, height, width, 3); of videos (n, frames, height, width, 3)."""
    pixels: NDArray[np.uint8] = (
        (eight_bit(images) * 255).round().to(torch.uint8).movedim(-3, -1).numpy()
    )
    return pixels


def save(
    folder: Path, unit: Unit, pixels: NDArray[np.uint8], flagged: Sequence[bool]
) -> list[dict[str, Any]]:
    """Store the images or videos of a call; returns their rows of the table `images`."""
    (folder / "images").mkdir(exist_ok=True)
    flags = flagged or [False] * len(pixels)
    rows = []
    for (prompt_id, prompt, seed), image, flag in zip(unit.pairs, pixels, flags, strict=True):
        is_video = image.ndim == 4
        path = Path("images") / f"{unit.id}-{prompt_id}-{seed}{SUFFIX if is_video else '.png'}"
        if is_video:
            write_animation(folder / path, image)
        else:
            Image.fromarray(image).save(folder / path)
        rows.append(
            {
                "unit": unit.id,
                "variant": unit.variant.name,
                "prompt_id": prompt_id,
                "prompt": prompt,
                "seed": seed,
                "draw": unit.draw,
                "path": str(path),
                "sha256": hashlib.sha256(image.tobytes()).hexdigest(),
                "flagged": flag,
                **({"frames": len(image)} if is_video else {}),
            }
        )
    return rows


def digest(output: Float[Tensor, "n ..."], kind: str) -> str:
    """Of a call's images or videos as they are stored, or of its latents or its sound."""
    values = eight_bit(output) if kind in PICTURES else output.float().cpu()
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()


def scored(
    images: pd.DataFrame, runs: pd.DataFrame, study: Study, folder: Path, *, chunk: int = 64
) -> pd.DataFrame:
    """The images table with every metric of the study.

    At most `2 * chunk` images are open at a time, or two videos.

    Each image is compared with the one that the reference's first repeat made of the same prompt
    and seed. That is the baseline's as a rule: then its second repeat, compared like any other, is
    the noise floor. A placeholder
    of a safety checker is neither scored nor compared with.
    """
    images = images.merge(runs[["unit", "repeat"]], on="unit")
    is_image = ~images["flagged"].fillna(False)
    is_reference = (images["variant"] == study.reference) & (images["repeat"] == 0) & is_image
    reference = images[is_reference].set_index(["prompt_id", "seed"])["path"]
    images = images.drop(columns="repeat")
    against = images[["prompt_id", "seed"]].join(reference, on=["prompt_id", "seed"])["path"]
    comparable = is_image & ~is_reference & against.notna()
    images.loc[comparable, "reference_variant"] = study.reference
    if "frames" in images:
        against = against.where(comparable)
        return images.assign(**_of_videos(images, against, is_image, study.metrics or (), folder))

    for name in study.metrics or ():
        metric, _ = find_metric(name)
        rows = images.index[is_image if metric.needs == "prompt" else comparable]
        values = np.full(len(images), np.nan)
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            values[part] = _scores(study, name, images.loc[part], against[part], folder)
        images[metric.name] = values
    return images


def _scores(
    study: Study, name: str, images: pd.DataFrame, against: pd.Series[str], folder: Path
) -> Float[Tensor, " n"]:
    """A metric of some images; their pixels are gone when it returns."""
    pixels = read_images(folder, images["path"])
    if find_metric(name)[0].needs == "prompt":
        prompts = list(images["prompt"])
        return score(name, pixels, readable(study.model, prompts) if name == ALIGNMENT else prompts)
    return score(name, pixels, read_images(folder, against))


def _of_videos(
    images: pd.DataFrame,
    against: pd.Series[str],
    is_video: pd.Series[bool],
    metrics: Sequence[str],
    folder: Path,
) -> pd.DataFrame:
    """Every metric of videos, of which none is compared where `against` is missing."""
    rows: list[dict[str, float]] = []
    for (_, video), other, is_one in zip(images.iterrows(), against, is_video, strict=True):
        own = video["path"]
        if not is_one:
            rows.append({})
            continue
        (frames,) = read_images(folder, [own])
        reference = None if pd.isna(other) else read_images(folder, [other])[0]
        rows.append(judged(metrics, frames, prompt=video["prompt"], reference=reference))
    return pd.DataFrame(rows, index=images.index, dtype="float64")


def read_images(folder: Path, paths: Iterable[str]) -> Float[Tensor, "n *frames 3 height width"]:
    """Images or videos of one size, by their paths in a folder, in [0, 1].

    Raises:
        ValueError: a path that leads out of the folder, an image that cannot be read, or one of
            another size.
    """
    arrays = [read_pixels(inside(folder, path)) for path in paths]
    if len({array.shape for array in arrays}) != 1:
        raise ValueError(f"{folder}: the images are not of one size, or there are none")
    return torch.from_numpy(np.stack(arrays)).movedim(-1, -3).float() / 255
