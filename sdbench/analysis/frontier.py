"""Planned schedules against their controls, on pairs that the plan was not tuned on: who wins, and by how much."""

import numpy as np
import pandas as pd

from sdbench.analysis.stats import Interval
from sdbench.analysis.tables import BASELINE, pair_interval, spread

PLANNED = "plan"


def plan_table(judged: pd.DataFrame, metric: str, *, higher_is_better: bool) -> pd.DataFrame:
    """One row per plan and variant: its mean of a metric, and how much worse than the plan it is, pair by pair.

    Args:
        judged: the table of that name.
        metric: one of its columns.
        higher_is_better: the metric's direction.

    Returns:
        `unguided` (of the plan), `variant` (the plan first), `nfe`, `pairs`, the metric with `_lo` and `_hi`; `worse`
        with `worse_lo` and `worse_hi`: the mean difference to the plan, above 0 where the plan is better; `verdict`:
        "plan better" or "plan worse" where the interval is clear of 0, else "not told apart". The plan itself and the
        fully guided baseline have no verdict. Intervals are 95 %, by bootstrap over prompts.
    """
    rows = []
    sign = -1 if higher_is_better else 1
    for unguided, part in judged.groupby("unguided"):
        values = part.pivot_table(metric, index=["prompt_id", "seed"], columns="variant", observed=True).astype(float)
        names = [name for name in part["variant"].unique() if name not in (PLANNED, BASELINE)]
        for name in [PLANNED, *names]:
            pairs = int((values[name].notna() & values[PLANNED].notna()).sum())
            row = {"unguided": unguided, "variant": name, "pairs": pairs}
            row["nfe"] = float(part.loc[part["variant"] == name, "nfe"].mean())
            row |= spread(metric, pair_interval(values[name].dropna()))
            difference = (sign * (values[name] - values[PLANNED])).dropna()
            same = bool((difference == 0).all())
            worse = Interval(0.0, np.nan, np.nan) if same else pair_interval(difference)
            row |= spread("worse", worse)
            row["verdict"] = "" if name == PLANNED else "no difference" if same else _verdict(worse)
            rows.append(row)
    return pd.DataFrame(rows)


def _verdict(worse: Interval) -> str:
    if worse.lo > 0:
        return "plan better"
    return "plan worse" if worse.hi < 0 else "not told apart"
