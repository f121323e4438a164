"""What students keep of their teacher: by the rank of their layers, and by the guidance scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from sdbench.analysis.tables import summarise
from sdbench.records.names import BASELINE
from sdbench.records.store import Results

_KEPT = [f"{metric}{end}" for metric in ("lpips", "alignment") for end in ("", "_lo", "_hi")]


def rank_curve(
    results: Results,
    ranks: Mapping[str, int],
    adapter_bytes: Mapping[int, int],
    ledgers: Mapping[int, pd.DataFrame],
) -> pd.DataFrame:
    """One row per rank: what the student keeps, its size, and the memory that training holds.

    Args:
        results: of a study with the students as variants.
        ranks: of each student, by its variant.
        adapter_bytes: size of the adapter's file, by rank.
        ledgers: tables `ledger` of training, by rank.

    Returns:
        `rank`, `variant`, `lpips` and `alignment` with `_lo` and `_hi`, `adapter_bytes`,
        `peak_bytes` of training.
    """
    summary = summarise(results).set_index("variant")
    rows = [
        {"rank": rank, "variant": variant}
        | summary.loc[variant, _KEPT].to_dict()
        | {
            "adapter_bytes": adapter_bytes[rank],
            "peak_bytes": int(ledgers[rank]["at_peak_bytes"].sum()),
        }
        for variant, rank in ranks.items()
    ]
    return pd.DataFrame(rows).sort_values("rank", ignore_index=True)


def scale_curve(studies: Sequence[Results]) -> pd.DataFrame:
    """One row per guidance scale and variant, the teacher's too; of studies of different scales.

    Returns:
        `guidance_scale`, `variant`, `lpips` (to the teacher at the same scale, 0 for the teacher)
        and `alignment`, each with `_lo` and `_hi`.
    """
    curves = []
    for results in studies:
        kept = summarise(results)[["variant", *_KEPT]].copy()
        # The summary has the distance between two runs of the teacher, the noise floor.
        kept.loc[kept["variant"] == BASELINE, "lpips"] = 0.0
        curves.append(kept.assign(guidance_scale=float(results.study["guidance_scale"])))
    return pd.concat(curves, ignore_index=True).sort_values(
        "guidance_scale", kind="stable", ignore_index=True
    )
