"""What time buys: variants that no other beats in time and quality at once; plans and controls."""

import numpy as np
import pandas as pd

from sdbench.analysis.stats import Interval
from sdbench.analysis.tables import pair_interval, spread
from sdbench.records.names import BASELINE, PLANNED, split_name

TIMES = ("latency_s", "saving", "denoise_saving", "predicted_saving", "peak_bytes")
"""Beginnings of the summary's columns that another study's times replace."""
SAVING = ("saving", "saving_lo", "saving_hi")
OWN_TIME = frozenset({"steps"})
"""Kinds of variants whose argument sets how many steps run, and so their time."""
GUIDED_TIME = frozenset({"scale"})
"""Kinds of variants that guide every step, as the baseline does."""


def frontier(
    summary: pd.DataFrame,
    metric: str,
    *,
    higher_is_better: bool,
    timing: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The summary of a study in the order of time, with a mark where no faster variant is as good.

    Args:
        summary: from `summarise`, with the metric.
        metric: one of its columns; the baseline itself is perfect in a metric that compares with
            it.
        higher_is_better: the metric's direction.
        timing: summary of another study of the same variants, whose times count: quality takes many
            images, time a machine that does nothing else.

    Returns:
        The rows that have a time and the metric, fastest first, with `efficient`: no other variant
        saves at least as much of the denoising loop and is better, or as good and faster. A saving
        whose interval holds 0 counts as none.

    Raises:
        ValueError: a variant has no time in the other study.
    """
    table = summary.copy() if timing is None else _with_times(summary, timing)

    # A study of one repeat has no distance of the baseline to itself, in which it is perfect.
    if f"{metric}_lo" in table and table.loc[table["variant"] == BASELINE, metric].isna().all():
        table.loc[table["variant"] == BASELINE, metric] = np.inf if higher_is_better else 0.0
    table = table.dropna(subset=["denoise_saving", metric]).sort_values(
        "denoise_saving", ascending=False, kind="stable"
    )

    loss = (-1 if higher_is_better else 1) * table[metric].to_numpy()
    shown = ~((table["denoise_saving_lo"] <= 0) & (table["denoise_saving_hi"] >= 0))

    # A variant is beaten where another is as fast and better, or faster and as good.
    saved = table["denoise_saving"].where(shown, 0.0).to_numpy()
    beaten = [
        bool((((saved >= own_saved) & (loss < own)) | ((saved > own_saved) & (loss <= own))).any())
        for own_saved, own in zip(saved, loss, strict=True)
    ]
    return table.assign(efficient=np.logical_not(beaten)).reset_index(drop=True)


def _with_times(summary: pd.DataFrame, timing: pd.DataFrame) -> pd.DataFrame:
    """The summary with the times of another study."""
    table = summary.copy()
    timed = timing.set_index("variant")
    missing = [name for name in table.loc[table["pairs"] > 0, "variant"] if name not in timed.index]
    if missing:
        raise ValueError(f"the study of time has no '{missing[0]}'")
    for column in timed.columns[timed.columns.str.startswith(TIMES)]:
        table[column] = table["variant"].map(timed[column])
    return table


def plan_table(
    judged: pd.DataFrame, metric: str, *, higher_is_better: bool, timing: pd.DataFrame
) -> pd.DataFrame:
    """One row per plan and variant: time saved, mean of a metric, and how much worse than the plan.

    Args:
        judged: the table of that name.
        metric: one of its columns.
        higher_is_better: the metric's direction.
        timing: summary of the study of time that comes with the plans.

    Returns:
        `unguided` (of the plan), `variant` (the plan first), `nfe`, `pairs`, the metric with `_lo`
        and `_hi`; `saving` with `saving_lo` and `saving_hi`: share of the time of the guided call;
        `worse` with `worse_lo` and `worse_hi`: the mean difference to the plan, pair by pair, above
        0 where the plan is better; `verdict`: "plan better" or "plan worse" where the interval is
        clear of 0, else "undecided". The plan itself and the fully guided baseline have no verdict.
        Intervals are 95 %: of time over repeats, of the others by bootstrap over prompts.
    """
    savings = timing.set_index("variant")
    sign = -1 if higher_is_better else 1
    rows = []
    for unguided in map(int, judged["unguided"].unique()):
        rivals = judged[judged["unguided"] == unguided]
        values = rivals.pivot_table(
            metric, index=["prompt_id", "seed"], columns="variant", observed=True
        ).astype(float)

        # The baseline is the reference of the metric: it has no place among what approaches it.
        names = [name for name in rivals["variant"].unique() if name not in (PLANNED, BASELINE)]

        for name in [PLANNED, *names]:
            pairs = int((values[name].notna() & values[PLANNED].notna()).sum())
            row = {"unguided": unguided, "variant": name, "pairs": pairs}
            row["nfe"] = float(rivals.loc[rivals["variant"] == name, "nfe"].mean())
            row |= spread(metric, pair_interval(values[name].dropna()))
            timed = savings.loc[timed_as(name, unguided)]
            row |= {end: timed[end] for end in SAVING}

            # How much worse than the plan, pair by pair: above 0 the plan is better.
            difference = (sign * (values[name] - values[PLANNED])).dropna()
            same = bool((difference == 0).all())
            worse = Interval(0.0, np.nan, np.nan) if same else pair_interval(difference)
            row |= spread("worse", worse)
            row["verdict"] = "" if name == PLANNED else _verdict(worse, same=same)
            rows.append(row)
    return pd.DataFrame(rows)


def timed_as(variant: str, unguided: int) -> str:
    """The variant whose time stands for a variant's.

    Time depends on how many steps are unguided, not on which.
    """
    kind, _ = split_name(variant)
    if kind in OWN_TIME:
        return variant
    return BASELINE if kind in GUIDED_TIME else f"last:{unguided}"


def _verdict(worse: Interval, *, same: bool) -> str:
    if same:
        return "identical"
    if worse.lo > 0:
        return "plan better"
    return "plan worse" if worse.hi < 0 else "undecided"
