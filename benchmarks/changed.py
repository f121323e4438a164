"""From which value of a metric on an image counts as changed (`python -m benchmarks.changed`).

The stored baselines' second runs are the same images bit by bit, so noise sets no threshold. What
the reader of scenes sees does: an image whose alignment is not the baseline's shows other objects.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray

from benchmarks.populations import Array, studies
from sdbench.records.metrics import SCALES
from sdbench.records.names import BASELINE

FLAT = 0.01  # below the best by less than this, a threshold is as good


class Threshold(NamedTuple):
    """How well a threshold tells images with another alignment from the others.

    Attributes:
        value: of the metric.
        sensitivity: share of the images with another alignment that are beyond it.
        specificity: share of the others that are not.
    """

    value: float
    sensitivity: float
    specificity: float

    @property
    def youden(self) -> float:
        """Youden's J, 0 for a threshold that tells nothing and 1 for one that tells all."""
        return self.sensitivity + self.specificity - 1


def against_baseline() -> pd.DataFrame:
    """Every image of the stored populations: its metrics, and whether its alignment differs."""
    tables = []
    for study, means in studies():
        pairs = pd.MultiIndex.from_frame(means[["prompt_id", "seed"]])
        guided = means["variant"] == BASELINE
        alignment = pd.Series(means.loc[guided, "alignment"].to_numpy(), pairs[guided])
        differs = means["alignment"].to_numpy() != alignment.reindex(pairs).to_numpy()
        tables.append(means.assign(study=study, differs=differs)[~guided])
    return pd.concat(tables, ignore_index=True)


def at(threshold: float, loss: Array, differs: NDArray[np.bool_]) -> Threshold:
    """How well one threshold tells them apart; a larger loss is beyond it."""
    beyond = loss > threshold
    return Threshold(threshold, float(beyond[differs].mean()), float((~beyond[~differs]).mean()))


def best(loss: Array, differs: NDArray[np.bool_]) -> tuple[Threshold, float, float]:
    """The threshold of the largest Youden's J, and between which values others are as good."""
    order = np.argsort(loss, kind="stable")
    values, other = loss[order], differs[order]
    sensitivity = 1 - np.cumsum(other) / other.sum()
    specificity = np.cumsum(~other) / (~other).sum()

    # Of equal values the last has them all on its side.
    last = np.append(values[1:] != values[:-1], True)
    youden = np.where(last, sensitivity + specificity - 1, -np.inf)
    place = int(youden.argmax())
    as_good = values[youden > youden[place] - FLAT]
    found = Threshold(float(values[place]), float(sensitivity[place]), float(specificity[place]))
    return found, float(as_good[0]), float(as_good[-1])


def main() -> None:
    """Print the best threshold of every metric, and how good the stated one is."""
    table = against_baseline()
    head = ["metric", "images", "best", "J", "as good from", "to", "stated", "J", "sensitivity"]
    typer.echo(f"| {' | '.join([*head, 'specificity'])} |\n|{' --- |' * (len(head) + 1)}")

    for metric, scale in SCALES.items():
        if scale.changed is None:
            continue
        sign = -1 if scale.higher_is_better else 1
        images = table.dropna(subset=[metric])
        loss, differs = sign * images[metric].to_numpy(), images["differs"].to_numpy()
        found, *ends = best(loss, differs)
        stated = at(sign * scale.changed, loss, differs)
        numbers = [sign * found.value, found.youden, *sorted(sign * end for end in ends)]
        numbers += [scale.changed, stated.youden, stated.sensitivity, stated.specificity]
        cells = [metric, str(len(images)), *(f"{number:.3g}" for number in numbers)]
        typer.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
