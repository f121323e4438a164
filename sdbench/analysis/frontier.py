"""Planned schedules against their controls on pairs they were not tuned on: who wins, by how much, in what time."""

import numpy as np
import pandas as pd

from sdbench.analysis.stats import Interval
from sdbench.analysis.tables import BASELINE, pair_interval, spread

PLANNED = "plan"


def plan_table(judged: pd.DataFrame, metric: str, *, higher_is_better: bool, timing: pd.DataFrame) -> pd.DataFrame:
    """One row per plan and variant: time saved, its mean of a metric, and how much worse than the plan it is.

    Args:
        judged: the table of that name.
        metric: one of its columns.
        higher_is_better: the metric's direction.
        timing: summary of the study of time that comes with the plans.

    Returns:
        `unguided` (of the plan), `variant` (the plan first), `nfe`, `pairs`, the metric with `_lo` and `_hi`; `saving`
        with `saving_lo` and `saving_hi`: share of the time of the guided call; `worse` with `worse_lo` and `worse_hi`:
        the mean difference to the plan, pair by pair, above 0 where the plan is better; `verdict`:
        "plan better" or "plan worse" where the interval is clear of 0, else "undecided". The plan itself and the
        fully guided baseline have no verdict. Intervals are 95 %: of time over repeats, of the others by bootstrap over
        prompts.
    """
    savings = timing.set_index("variant")
    rows = []
    sign = -1 if higher_is_better else 1
    for unguided in map(int, judged["unguided"].unique()):
        part = judged[judged["unguided"] == unguided]
        values = part.pivot_table(metric, index=["prompt_id", "seed"], columns="variant", observed=True).astype(float)
        names = [name for name in part["variant"].unique() if name not in (PLANNED, BASELINE)]
        for name in [PLANNED, *names]:
            pairs = int((values[name].notna() & values[PLANNED].notna()).sum())
            row = {"unguided": unguided, "variant": name, "pairs": pairs}
            row["nfe"] = float(part.loc[part["variant"] == name, "nfe"].mean())
            row |= spread(metric, pair_interval(values[name].dropna()))
            row |= {end: savings.loc[timed_as(name, unguided), end] for end in ("saving", "saving_lo", "saving_hi")}
            difference = (sign * (values[name] - values[PLANNED])).dropna()
            same = bool((difference == 0).all())
            worse = Interval(0.0, np.nan, np.nan) if same else pair_interval(difference)
            row |= spread("worse", worse)
            row["verdict"] = "" if name == PLANNED else "identical" if same else _verdict(worse)
            rows.append(row)
    return pd.DataFrame(rows)


def timed_as(variant: str, unguided: int) -> str:
    """The variant whose time stands for a variant's: time depends on how many steps are unguided, not on which."""
    kind = variant.partition(":")[0]
    return variant if kind == "steps" else BASELINE if kind == "scale" else f"last:{unguided}"


def _verdict(worse: Interval) -> str:
    if worse.lo > 0:
        return "plan better"
    return "plan worse" if worse.hi < 0 else "undecided"
