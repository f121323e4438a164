"""Plans against their controls, pair by pair, in time and a metric."""

import pandas as pd

from sdbench.analysis.draws import less
from sdbench.analysis.pairs import (
    BETTER,
    IDENTICAL,
    NEARER,
    UNDECIDED,
    metric_columns,
    paired_verdict,
)
from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.analysis.stats import spread
from sdbench.records.names import BASELINE, PLANNED, split_name

SAVING = ("saving", "saving_lo", "saving_hi")
OWN_TIME = frozenset({"steps"})
"""Kinds of variants whose argument sets how many steps run, and so their time."""
GUIDED_TIME = frozenset({"scale"})
"""Kinds of variants that guide every step, as the baseline does."""


def plan_table(
    judged: pd.DataFrame, metric: str, *, higher_is_better: bool, timing: pd.DataFrame
) -> pd.DataFrame:
    """One row per plan and variant: time saved, a metric, and how much worse than the plan.

    Args:
        judged: the table of that name.
        metric: one of its columns.
        higher_is_better: the metric's direction.
        timing: summary of the study of time that comes with the plans.

    Returns:
        `unguided` (of the plan), `variant` (the plan first), `nfe`, `pairs`, the metric (its mean)
        with its median and share of changed images, as `metric_columns` says; `saving`: share of
        the time of the guided call; `worse`: the mean difference to the plan, pair by pair, above 0
        where the plan is better; `plan_better`: the share of pairs in which it is, among those
        that differ; `verdict`: "plan nearer" or "plan farther" ("better" or "worse" by a
        metric without a reference) where the mean and most pairs agree, else what
        `paired_verdict` says; `disturbance`, that of the study of time. The plan itself and the
        fully guided baseline have no verdict. `_lo` and `_hi` are the ends of 95 % intervals: of
        time over repeats, of the others over prompts.

    Raises:
        ValueError: a variant was judged on other pairs of caption and seed than the plan.
    """
    savings = timing.set_index("variant")
    sign = -1 if higher_is_better else 1
    words = BETTER if metric in WITHOUT_REFERENCE else NEARER

    rows = []
    for unguided in map(int, judged["unguided"].unique()):
        rivals = _by_caption(judged[judged["unguided"] == unguided])
        images = {
            str(name): values
            for name, values in rivals.groupby("variant", observed=True, sort=False)[metric]
        }

        # The baseline is the reference of the metric: it has no place among what approaches it.
        names = [name for name in images if name not in (PLANNED, BASELINE)]
        plan = _by_pair(images[PLANNED])

        for name in [PLANNED, *names]:
            values = _by_pair(images[name])
            worse = (sign * (values - plan)).dropna()
            row = {"unguided": unguided, "variant": name, "pairs": len(worse)}
            row["nfe"] = float(rivals.loc[rivals["variant"] == name, "nfe"].mean())
            row |= metric_columns(values, metric, images=images[name])
            timed = savings.loc[timed_as(name, unguided)]
            row |= {column: timed[column] for column in (*SAVING, "disturbance")}

            # The loss of the plan less the rival's: below 0 the plan is better.
            by_image = -sign * less(images[name].astype(float), plan)
            paired = paired_verdict(-worse, metric, words=words, images=by_image)
            row |= spread("worse", paired.mean.negated())
            row |= spread("plan_better", paired.better)
            row["verdict"] = "" if name == PLANNED else _of_plan(paired.verdict)
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


def _by_caption(rivals: pd.DataFrame) -> pd.DataFrame:
    """The rows of a plan and its rivals by pair and draw, with the caption as `prompt_id`.

    An identifier of a prompt means nothing outside of its study.

    Raises:
        ValueError: a rival was judged on other pairs than the plan.
    """
    pairs = {
        str(name): set(zip(rows["prompt"], rows["seed"], strict=True))
        for name, rows in rivals.groupby("variant", observed=True)
    }
    plan = pairs[PLANNED]
    for name, own in pairs.items():
        if own != plan:
            raise ValueError(
                f"'{name}' was judged on {len(own)} pairs of caption and seed, and shares "
                f"{len(own & plan)} of the plan's {len(plan)}: judge both on the same"
            )
    return rivals.assign(prompt_id=rivals["prompt"]).set_index(["prompt_id", "seed", "draw"])


def _of_plan(verdict: str) -> str:
    return verdict if verdict in (IDENTICAL, UNDECIDED) else f"plan {verdict}"


def _by_pair(values: "pd.Series[float]") -> "pd.Series[float]":
    """One value per pair: the mean over the draws of a variant that has several."""
    return values.astype(float).groupby(level=["prompt_id", "seed"], observed=True).mean()
