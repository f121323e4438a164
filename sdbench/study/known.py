"""Known answers: what a study's metrics say of images that are surely bad, or as good as its own.

A black frame, random pixels and the image of another prompt must be judged worse than the
baseline's image; another seed of the same prompt, and the same call again, say how far images are
apart that are equally good. Of a video all of its frames are black, or random, and its first frame
standing still is bad, too. What the values mean is in `sdbench.analysis.known`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sdbench.instruments.quality import find_metric, score
from sdbench.instruments.video_quality import score_videos
from sdbench.records.files import inside, read_pixels
from sdbench.records.names import ANSWERS, BAD_ANSWERS, BASELINE, STILL
from sdbench.records.schema import frame
from sdbench.study.generation import Pairs
from sdbench.study.study import Study
from sdbench.study.units import Shard, Unit, batches_of

PROMPTS = 64  # at most, one image each: as many as an interval of a mean takes
CHUNK = 16  # images of an answer that are open at a time
BLACK, NOISE, OTHER_PROMPT = BAD_ANSWERS
OTHER_SEED, AGAIN = ANSWERS[len(BAD_ANSWERS) :]

Picture = str | NDArray[np.uint8]
"""A file of the study, or the pixels of an image or a video that is not kept."""
Made = Mapping[str, Mapping[str, Picture]]
"""Pictures by answer and prompt_id."""


def known_units(
    study: Study, shard: Shard | None = None, *, pipeline: str = ""
) -> dict[str, list[Unit]]:
    """The calls of the baseline that known answers take beyond the study's own, by answer.

    A study of several seeds has other seeds, and one of several repeats has the same call again.
    The others make both for their first 64 prompts; nobody times these calls.

    Args:
        study: that runs.
        shard: as in `units`.
        pipeline: as in `Unit`.
    """
    if not study.metrics:
        return {}
    first = study.seeds[0]
    batches = _of_seed(study, first, shard)
    baseline = next(variant for variant in study.variants if variant.is_baseline)

    def calls(pairs_of_calls: Iterable[Pairs], repeat: int) -> list[Unit]:
        return [
            Unit(study, baseline, pairs, repeat, "untimed", pipeline) for pairs in pairs_of_calls
        ]

    found = {}
    if len(study.seeds) == 1:
        other = first + 1 if first < 2**63 - 1 else first - 1
        moved = [tuple((name, text, other) for name, text, _ in batch) for batch in batches]
        found[OTHER_SEED] = calls(moved, 0)
    if study.repeats == 1:
        found[AGAIN] = calls(batches, 1)
    return found


def _of_seed(study: Study, seed: int, shard: Shard | None) -> list[Pairs]:
    """The first 64 pairs of a seed, in the batches of the study."""
    chosen = set([pair for pair in study.pairs if pair[2] == seed][:PROMPTS])
    batches = [
        tuple(pair for pair in batch if pair in chosen) for batch in batches_of(study, shard)
    ]
    return [batch for batch in batches if batch]


def known_answers(
    images: pd.DataFrame,
    runs: pd.DataFrame,
    folder: Path,
    *,
    metrics: Sequence[str],
    seeds: Sequence[int],
    made: Made,
) -> pd.DataFrame:
    """The table of known answers, from a study's images.

    Args:
        images: the table of that name.
        runs: the table of that name.
        folder: of the study, with its images.
        metrics: of the study, by their names.
        seeds: of the study.
        made: pictures that the study does not keep.

    Returns:
        The table `known`: no row of an answer of which there is no image.
    """
    images = images.merge(runs[["unit", "repeat"]], on="unit")
    first = _baseline(images, repeat=0, seed=seeds[0]).head(PROMPTS)
    paths = first["path"]
    pictures: dict[str, dict[str, Picture]] = {
        OTHER_PROMPT: dict(zip(first.index, np.roll(paths, -1), strict=True))
        if len(first) > 1
        else {},
        AGAIN: _paths(_baseline(images, repeat=1, seed=seeds[0])),
    }
    if len(seeds) > 1:
        pictures[OTHER_SEED] = _paths(_baseline(images, repeat=0, seed=seeds[1]))
    for answer, further in made.items():
        pictures[answer] = {**pictures.get(answer, {}), **further}

    judge = _Judge(folder, tuple(metrics))
    chunk = 1 if "frames" in images else CHUNK
    rows = []
    for start in range(0, len(first), chunk):
        part = first.iloc[start : start + chunk]
        rows += judge.rows(part, pictures)
    return frame("known", rows)


def _baseline(images: pd.DataFrame, *, repeat: int, seed: int) -> pd.DataFrame:
    """The baseline's images of a repeat and a seed, by prompt."""
    kept = (
        (images["variant"] == BASELINE)
        & (images["repeat"] == repeat)
        & (images["seed"] == seed)
        & ~images["flagged"].fillna(False).astype(bool)
        & images["path"].notna()
    )
    return images[kept].sort_values("prompt_id").set_index("prompt_id")


def _paths(images: pd.DataFrame) -> dict[str, Picture]:
    return dict(zip(images.index, images["path"], strict=True))


@dataclass(frozen=True)
class _Judge:
    """Judges pictures by every metric of a study."""

    folder: Path
    metrics: tuple[str, ...]

    def rows(
        self, own: pd.DataFrame, pictures: Mapping[str, Mapping[str, Picture]]
    ) -> list[dict[str, Any]]:
        """The rows of some prompts: `own` are the baseline's images by prompt."""
        reference = self._pixels(own["path"])
        replaced = _replaced(reference, own["seed"])
        rows = []
        baseline = {name: self._values(name, reference, own, reference) for name in self.metrics}
        for answer in (*ANSWERS, STILL):
            there = pictures.get(answer, {})
            kept = [prompt in there or answer in replaced for prompt in own.index]
            if not any(kept):
                continue
            part = own[kept]
            judged = replaced.get(answer)
            if judged is None:
                judged = self._pixels(there[prompt] for prompt in part.index)
            for name in self.metrics:
                values = self._values(name, judged, part, reference[torch.tensor(kept)], own=False)
                of_baseline = baseline[name][torch.tensor(kept)]
                rows += _rows_of(name, answer, part, values, of_baseline)
        return rows

    def _values(
        self,
        name: str,
        judged: Float[Tensor, "n *frames 3 height width"],
        about: pd.DataFrame,
        reference: Float[Tensor, "n *frames 3 height width"],
        *,
        own: bool = True,
    ) -> Float[Tensor, " n"]:
        """A metric of pictures; of the baseline's own, some metrics have no finite value."""
        against: Any = reference
        if find_metric(name)[0].needs == "prompt":
            against = list(about["prompt"])
        elif own:
            judged = _one_level_off(judged)
        if judged.ndim == 4:
            return score(name, judged, against)
        return torch.tensor(score_videos(name, judged, against))

    def _pixels(self, pictures: Iterable[Picture]) -> Float[Tensor, "n *frames 3 height width"]:
        arrays = [
            read_pixels(inside(self.folder, picture)) if isinstance(picture, str) else picture
            for picture in pictures
        ]
        return torch.from_numpy(np.stack(arrays)).movedim(-1, -3).float() / 255


def _rows_of(
    name: str,
    answer: str,
    about: pd.DataFrame,
    values: Float[Tensor, " n"],
    baseline: Float[Tensor, " n"],
) -> list[dict[str, Any]]:
    metric, _ = find_metric(name)
    said = {"metric": metric.name, "answer": answer, "higher_is_better": metric.higher_is_better}
    columns = zip(
        about.index, about["prompt"], about["seed"], values.tolist(), baseline.tolist(), strict=True
    )
    names = ("prompt_id", "prompt", "seed", "value", "baseline")
    return [said | dict(zip(names, cells, strict=True)) for cells in columns]


def _replaced(
    reference: Float[Tensor, "n *frames 3 height width"], seeds: Iterable[int]
) -> dict[str, Float[Tensor, "n *frames 3 height width"]]:
    """What takes the place of the baseline's images or videos and is made from nothing else."""
    replaced = {BLACK: torch.zeros_like(reference), NOISE: _noise(reference, seeds)}
    if reference.ndim == 5:
        replaced[STILL] = reference[:, :1].expand_as(reference)
    return replaced


def _noise(
    like: Float[Tensor, "n *frames 3 height width"], seeds: Iterable[int]
) -> Float[Tensor, "n *frames 3 height width"]:
    """Random pixels of 256 levels, of one generator per image."""
    generators = [torch.Generator().manual_seed(place) for place, _ in enumerate(seeds)]
    levels = [torch.randint(256, like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(levels).float() / 255


def _one_level_off(
    images: Float[Tensor, "n *frames 3 height width"],
) -> Float[Tensor, "n *frames 3 height width"]:
    """Images with every value one of 255 levels lower, or higher where it is the lowest."""
    step = torch.where(images > 0, -1.0, 1.0) / 255
    return images + step


def placed(outcomes: Mapping[str, Sequence[tuple[Unit, Any]]]) -> Made:
    """What calls made, by answer and prompt; without a safety checker's placeholders.

    Args:
        outcomes: of `known_units`, by answer.
    """
    made: dict[str, dict[str, Picture]] = {}
    for answer, calls in outcomes.items():
        made[answer] = {}
        for unit, outcome in calls:
            if outcome.images is None:
                continue  # a call that failed made nothing
            flags = outcome.flagged or [False] * len(unit.pairs)
            for (prompt_id, _, _), image, flagged in zip(
                unit.pairs, outcome.images, flags, strict=True
            ):
                if not flagged:
                    made[answer][prompt_id] = image
    return made
