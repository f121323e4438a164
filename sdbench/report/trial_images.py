"""The images of a blind test within its page: as many bytes for every trial, and none to read.

A trial is one block: two images in the same form, and which of them is shown as X. All blocks are
filled up to the same length with random bytes and lie under a mask, so that no length and no file
name tells which images are alike. Who reads the page's program can take the mask off.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from sdbench.analysis.perception.settings import drawn, masked
from sdbench.records.files import inside, read_image
from sdbench.records.store import Results

PAGE_BYTES = 7_500_000
"""Of all blocks in their text; with the program the page stays below 8 MB."""
HEADER = 7  # X, and two lengths of 3 bytes


class Form(NamedTuple):
    """How images are stored in a page.

    Attributes:
        side: most pixels of a side; None for those that the images have.
        quality: WebP's; None for no loss at all.
    """

    side: int | None
    quality: int | None

    @property
    def words(self) -> str:
        """What the form does to the images."""
        size = "in their own size" if self.side is None else f"at most {self.side} pixels wide"
        return f"{size}, {'without loss' if self.quality is None else f'WebP {self.quality}'}"


class Encoded(NamedTuple):
    """An image in a form, and its width and height."""

    content: bytes
    size: tuple[int, int]


FORMS = (
    Form(None, None),
    Form(None, 97),
    Form(None, 92),
    Form(768, 92),
    Form(512, 95),
    Form(512, 90),
    Form(384, 92),
    Form(256, 92),
    Form(192, 90),
)
"""In the order in which they are tried."""


def fitting_blocks(
    results: Results, trials: pd.DataFrame, seed: int
) -> tuple[list[str], Form, tuple[int, int]]:
    """Every trial's block as text, in the first form in which all fit into a page.

    Args:
        results: the study with its stored images.
        trials: as `sdbench.analysis.perception.trials.BlindTest` has them, practice as well.
        seed: of the masks.

    Returns:
        The blocks in the order of the trials, their form, and the images' width and height.

    Raises:
        ValueError: an image is missing or of another size than the rest, or too many to fit.
    """
    firsts, seconds = (_paths(results, trials[f"path_{side}"]) for side in "01")
    rights = trials["right"].fillna(0).astype(int)

    for form in FORMS:
        encode = cache(partial(_webp, form=form))
        pairs = [(encode(one), encode(other)) for one, other in zip(firsts, seconds, strict=True)]
        longest = max(len(one.content) + len(other.content) for one, other in pairs)
        if (longest + HEADER) * 4 / 3 * len(pairs) <= PAGE_BYTES:
            sizes = {image.size for pair in pairs for image in pair}
            if len(sizes) > 1:
                raise ValueError(f"{results.folder}: the images are not of one size")
            return _blocks(pairs, rights, longest, seed), form, sizes.pop()
    raise ValueError(f"{len(trials)} trials do not fit into a page of 8 MB; ask for fewer")


def _paths(results: Results, names: pd.Series[str]) -> list[Path]:
    """Image files of a study, which must be there."""
    paths = [inside(results.folder, name) for name in names if not pd.isna(name)]
    missing = next((path.name for path in paths if not path.is_file()), "no file is named")
    if len(paths) < len(names) or not all(path.is_file() for path in paths):
        raise ValueError(
            f"{results.folder} was stored without its images ({missing} is missing); "
            "make the study again, or take one that has them"
        )
    return paths


def _blocks(
    pairs: Sequence[tuple[Encoded, Encoded]], rights: pd.Series[int], longest: int, seed: int
) -> list[str]:
    """Blocks of one length under their masks, as text."""
    found = []
    for place, (pair, right) in enumerate(zip(pairs, rights, strict=True)):
        first, second = (image.content for image in pair)
        lengths = b"".join(len(image).to_bytes(3, "little") for image in (first, second))
        random = np.random.default_rng(list(drawn(seed, "fill", place)))
        fill = random.bytes(longest - len(first) - len(second))
        block = bytes([right]) + lengths + first + second + fill
        found.append(base64.b64encode(masked(block, seed + place)).decode())
    return found


def _webp(path: Path, form: Form) -> Encoded:
    image = read_image(path)
    if form.side is not None:
        image.thumbnail((form.side, form.side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if form.quality is None:
        image.save(file, "WEBP", lossless=True, exact=True, method=4)
    else:
        image.save(file, "WEBP", quality=form.quality, method=4)
    return Encoded(file.getvalue(), image.size)
