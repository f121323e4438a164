"""Energy per image, of studies whose calls have it."""

import pandas as pd

from sdbench.analysis.calls import timed
from sdbench.records.store import Results

ENERGY = ("energy_j", "idle_w")
"""Columns of the runs that this needs."""


def with_energy(summary: pd.DataFrame, results: Results) -> pd.DataFrame:
    """A summary with `energy_j` (per image) and `idle_w` (mean), where any call has its energy.

    Energy is that of the calls whose times count, over their images: the mean, since a counter's
    error is as often above as below.

    Args:
        summary: one row per `variant`.
        results: of its study.

    Returns:
        The same table, with both columns or without.
    """
    calls = timed(results).dropna(subset=["energy_j"]).astype({"variant": "string"})
    if calls.empty:
        return summary
    by_variant = calls.groupby("variant")
    energy_j = by_variant["energy_j"].sum() / by_variant["batch"].sum().astype(float)
    idle_w = by_variant["idle_w"].mean()
    names = summary["variant"]
    return summary.assign(energy_j=names.map(energy_j), idle_w=names.map(idle_w))
