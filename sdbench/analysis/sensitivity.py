"""What a sensitivity sweep says: curves over the place of the unguided steps, and what the sweep cost."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from sdbench.analysis.stats import cluster_bootstrap

BASELINE = "baseline"
WITHOUT_REFERENCE = ("alignment", "clip_score", "image_reward")  # their change is shown


def sensitivity_curve(sensitivity: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean of a metric over (prompt, seed) pairs for every mask of a sweep.

    Args:
        sensitivity: the table of a sweep.
        metric: one of its columns; of one without a reference image, such as `alignment`, the change from the baseline.

    Returns:
        One row per mask but the baseline's, by kind, start and length: `kind`, `start`, `length`, `mask`, `nfe`,
        `pairs`, and the metric with `_lo` and `_hi`, the 95 % interval by bootstrap over prompts.

    Raises:
        ValueError: the table has no values of the metric.
    """
    if metric not in sensitivity or sensitivity[metric].isna().all():
        raise ValueError(f"the sweep has no values of '{metric}'")
    table = sensitivity
    if metric in WITHOUT_REFERENCE:
        base = table[table["kind"] == BASELINE].set_index(["prompt_id", "seed"])[metric]
        pairs = pd.MultiIndex.from_frame(table[["prompt_id", "seed"]])
        table = table.assign(**{metric: table[metric].to_numpy() - base.reindex(pairs).to_numpy()})
    rows = []
    branches = table[table["kind"] != BASELINE]
    for (kind, mask), part in branches.groupby(["kind", "mask"], sort=False):
        known = part.dropna(subset=[metric])
        interval = cluster_bootstrap(known[metric], known["prompt_id"].astype(str))
        first = part.iloc[0]
        row = {
            "kind": kind,
            "start": first["start"],
            "length": first["length"],
            "mask": mask,
            "nfe": first["nfe"],
        }
        ends = {metric: interval.estimate, f"{metric}_lo": interval.lo, f"{metric}_hi": interval.hi}
        rows.append(row | {"pairs": len(known)} | ends)
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
    """Rows that a sweep evaluated per pair, beside those of one pipeline call per mask."""
    totals = sensitivity.groupby(["prompt_id", "seed"])[["rows", "nfe"]].sum().astype(float)
    return Evaluations(*(float(np.mean(totals[column])) for column in ("rows", "nfe")))
