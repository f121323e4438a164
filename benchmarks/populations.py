"""The stored studies of many images, as populations from which samples are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sdbench.analysis.tables import PAIRS, pair_means
from sdbench.records.metrics import SCALES
from sdbench.records.names import BASELINE
from sdbench.records.store import read

ROOT = Path(__file__).parent.parent
LEAST = 128  # prompts of a study
NEIGHBOURS = 16  # values of like rank from which the seeds of a prompt are drawn
OWN_SHARE = 0.5  # of the seeds that are drawn from the prompt's neighbours
DIFFERENCE = "alignment_difference"

Array = NDArray[np.float64]


class Population(NamedTuple):
    """A metric of a stored variant.

    Attributes:
        study: its folder below `results/`.
        variant: the way of running.
        metric: its name; `alignment_difference` is the change from the baseline.
        values: one per prompt.
    """

    study: str
    variant: str
    metric: str
    values: Array


def studies() -> Iterator[tuple[str, pd.DataFrame]]:
    """Every stored study of so many prompts with LPIPS: its folder and its `pair_means`."""
    for path in sorted((ROOT / "results").rglob("images.parquet")):
        images = pd.read_parquet(path, columns=["prompt_id", "lpips"])
        if images["prompt_id"].nunique() < LEAST or images["lpips"].isna().all():
            continue
        name = str(path.parent.relative_to(ROOT / "results"))
        yield name, pair_means(read(path.parent, columns=PAIRS))


def populations() -> list[Population]:
    """Every metric of every variant of those studies."""
    found = []
    for study, means in studies():
        values = means.set_index(["prompt_id", "seed"])
        guided = values.loc[values["variant"] == BASELINE, "alignment"]
        for variant in values["variant"].unique():
            own = values[values["variant"] == variant]
            if variant == BASELINE or len(own) != len(guided):
                continue
            columns = {metric: own[metric] for metric in SCALES if metric in own}
            columns[DIFFERENCE] = own["alignment"] - guided
            found += [
                Population(study, str(variant), metric, column.to_numpy(dtype=float))
                for metric, column in columns.items()
                if column.notna().all()
            ]
    return found


def draw(values: Array, prompts: int, seeds: int, generator: np.random.Generator) -> Array:
    """A sample with replacement whose mean and shares are the population's.

    Args:
        values: of the population.
        prompts: of the sample.
        seeds: of each prompt. Of several, half come from values of like rank, so that the seeds of
            a prompt are alike; the others from all.
        generator: of the draws.

    Returns:
        (prompts, seeds)
    """
    if seeds == 1:
        return generator.choice(values, (prompts, 1))
    blocks = np.sort(values).reshape(-1, NEIGHBOURS)
    own = generator.integers(len(blocks), size=(prompts, 1))
    like = blocks[own, generator.integers(NEIGHBOURS, size=(prompts, seeds))]
    is_own = generator.random((prompts, seeds)) < OWN_SHARE
    return np.where(is_own, like, generator.choice(values, (prompts, seeds)))
