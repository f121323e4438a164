"""What a sensitivity sweep says: curves over the place of the unguided steps, and its cost."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from sdbench.analysis.pairs import metric_columns, pair_interval
from sdbench.analysis.stats import spread

GUIDED_BRANCH = "baseline"
"""The `kind` of the branch that guides every step."""
WITHOUT_REFERENCE = ("alignment", "clip_score", "image_reward")  # their change is shown


def sensitivity_curve(sensitivity: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean of a metric over (prompt, seed) pairs for every mask of a sweep.

    Args:
        sensitivity: the table of a sweep.
        metric: one of its columns; of one without a reference image, such as `alignment`, the
            change from the baseline.

    Returns:
        One row per mask but the baseline's, by kind, start and length: `kind`, `start`, `length`,
        `mask`, `nfe`, `pairs`, and the metric (its mean), with its median and share of changed
        images as `metric_columns` says; of a change the mean alone. `_lo` and `_hi` are the ends
        of 95 % intervals over prompts.

    Raises:
        ValueError: the table has no values of the metric.
    """
    if metric not in sensitivity or sensitivity[metric].isna().all():
        raise ValueError(f"the sweep has no values of '{metric}'")
    table = sensitivity

    # A distance to the baseline is a change already; what stands alone becomes one here.
    if metric in WITHOUT_REFERENCE:
        guided = table[table["kind"] == GUIDED_BRANCH].set_index(["prompt_id", "seed"])[metric]
        pairs = pd.MultiIndex.from_frame(table[["prompt_id", "seed"]])
        change = table[metric].to_numpy() - guided.reindex(pairs).to_numpy()
        table = table.assign(**{metric: change})

    rows = []
    branches = table[table["kind"] != GUIDED_BRANCH]
    for (kind, mask), images in branches.groupby(["kind", "mask"], sort=False):
        measured = images.dropna(subset=[metric])
        values = measured.set_index(["prompt_id", "seed"])[metric]
        first = images.iloc[0]
        row = {
            "kind": kind,
            "start": first["start"],
            "length": first["length"],
            "mask": mask,
            "nfe": first["nfe"],
        }
        row["pairs"] = len(measured)
        if metric in WITHOUT_REFERENCE:
            row |= spread(metric, pair_interval(values, metric, difference=True))
        else:
            row |= metric_columns(values, metric)
        rows.append(row)

    return pd.DataFrame(rows).sort_values(["kind", "start", "length", "mask"], ignore_index=True)


class Evaluations(NamedTuple):
    """Denoiser rows per (prompt, seed) pair.

    Attributes:
        branched: what the sweep took, the baseline included.
        naive: what one call per mask would have taken, the baseline included.
    """

    branched: float
    naive: float


def evaluations(sensitivity: pd.DataFrame) -> Evaluations:
    """Rows that a sweep evaluated per pair, and those that one pipeline call per mask would."""
    totals = sensitivity.groupby(["prompt_id", "seed"])[["rows", "nfe"]].sum().astype(float)
    return Evaluations(*(float(np.mean(totals[column])) for column in ("rows", "nfe")))
