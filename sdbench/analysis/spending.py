"""What budgets buy: every way of spending them, by budget, and where the best way changes."""

from typing import Any

import numpy as np
import pandas as pd

from sdbench.analysis.pairs import BETTER, NEARER, metric_columns, paired_verdict
from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.analysis.stats import Interval, spread

WAY = ["method", "scheduler"]


def spending_table(spending: pd.DataFrame, metric: str, *, higher_is_better: bool) -> pd.DataFrame:
    """One row per budget and candidate, the chosen one first: what it costs and how good it is.

    Args:
        spending: the table of that name.
        metric: one of its columns.
        higher_is_better: the metric's direction.

    Returns:
        `budget`, `budget_unit`, `method`, `scheduler`, `variant`, `nfe` (mean), `pairs`; the metric
        (its mean) with its median and share of changed images, as `metric_columns` says; `chosen`:
        whether the search put it first on the tuning pairs; `worse`: the mean difference to the
        chosen one, pair by pair, above 0 where the chosen one is better; `verdict`: of it against
        the chosen one, as `paired_verdict` says. `_lo` and `_hi` are the ends of 95 % intervals.
    """
    sign = -1 if higher_is_better else 1
    rows = []
    for limit, of_budget in spending.groupby("budget", sort=True):
        losses = of_budget.groupby("variant", sort=False)["tuning_loss"].first()
        order = list(map(str, losses.sort_values(kind="stable").index))
        chosen = _values(of_budget, order[0], metric)
        for name in order:
            values = _values(of_budget, name, metric)
            about = of_budget[of_budget["variant"] == name]
            first = about.iloc[0]
            rows.append(
                {"budget": limit}
                | {column: first[column] for column in ("budget_unit", *WAY, "variant")}
                | {"nfe": float(about["nfe"].mean()), "pairs": len(values)}
                | metric_columns(values, metric)
                | {"chosen": name == order[0]}
                | _against(sign * (values - chosen), metric, is_chosen=name == order[0])
            )
    return pd.DataFrame(rows)


def _values(spending: pd.DataFrame, variant: str, metric: str) -> "pd.Series[float]":
    """A metric of a variant, by pair."""
    own = spending[spending["variant"] == variant]
    return own.set_index(["prompt_id", "seed"])[metric]


def _against(difference: "pd.Series[float]", metric: str, *, is_chosen: bool) -> dict[str, Any]:
    """What pairs say of a variant against the chosen one; nothing of that one itself."""
    if is_chosen:
        return spread("worse", Interval(np.nan, np.nan, np.nan)) | {"verdict": ""}
    words = BETTER if metric in WITHOUT_REFERENCE else NEARER
    paired = paired_verdict(difference, metric, words=words)
    return spread("worse", paired.mean) | {"verdict": paired.verdict}


def best_of_ways(table: pd.DataFrame) -> pd.DataFrame:
    """Of every budget the candidate of each method and scheduler that the tuning pairs put first.

    Args:
        table: of `spending_table`, whose rows stand in the order of the tuning pairs.
    """
    return table.drop_duplicates(["budget", *WAY])


def leading(table: pd.DataFrame, metric: str, *, higher_is_better: bool) -> list[str]:
    """In words: which way is best at which budgets, by the held-out mean.

    Args:
        table: of `spending_table`.
        metric: the one that it was made for.
        higher_is_better: the metric's direction.

    Returns:
        One line per run of budgets with the same best way, the smallest first. It also says at how
        many of them the chosen variant was shown to be better than every other way.
    """
    ways = best_of_ways(table)
    sorted_ways = ways.sort_values(metric, ascending=not higher_is_better, kind="stable")
    best = sorted_ways.drop_duplicates("budget").sort_values("budget")
    runs = (best[WAY] != best[WAY].shift()).any(axis=1).cumsum()
    lines = []
    for _, run in best.groupby(runs):
        first = run.iloc[0]
        limits = [f"{limit:g}" for limit in run["budget"]]
        unit = "evaluations" if first["budget_unit"] == "nfe" else "s"
        where = limits[0] if len(limits) == 1 else f"{limits[0]} to {limits[-1]}"
        clear = sum(_is_clear(ways[ways["budget"] == limit]) for limit in run["budget"])
        lines.append(
            f"at {where} {unit} {first['method']} under {first['scheduler']} has the best mean "
            f"{metric}; the variant chosen there is clearly better than every other way at {clear} "
            f"of {len(limits)} budgets"
        )
    return lines


def _is_clear(ways: pd.DataFrame) -> bool:
    """Whether the chosen candidate was shown to be better than the best of every other way."""
    chosen = ways[ways["chosen"]]
    others = ways[~ways["chosen"]]
    return len(chosen) == 1 and bool(others["verdict"].isin([NEARER[1], BETTER[1]]).all())
