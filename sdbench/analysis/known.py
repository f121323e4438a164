"""What a metric says of images that are surely bad, and which metrics cannot be read as quality."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from sdbench.analysis.paired_tests import LEVEL
from sdbench.records.names import ANSWERS, BAD_ANSWERS, STILL

TOLD, LIKED, OPEN = "worse", "not clearly worse", "too few pairs"
"""What was shown of a bad answer."""
LIKES = "_likes"
"""Ends the name of a summary's column that says which bad answers a metric likes."""
OTHER_SEED = "_other_seed"
"""Ends the name of the column with a metric's mean for another seed of the same prompt."""


def answer_table(known: pd.DataFrame) -> pd.DataFrame:
    """One row per metric and answer.

    Pairs are of different prompts, so they are independent: a bad answer is worse than the
    baseline's image where the mean says so and an exact one-sided sign test at 5 % agrees.

    Args:
        known: the table of that name.

    Returns:
        `metric`, `answer`, `pairs` (with both values), `value` and `baseline` (their means),
        `worse` (share of the pairs in which the answer is worse than the baseline's image), and
        `verdict`:
        "worse", "not clearly worse" (or better) or "too few pairs" to show anything (below 5) for
        the bad answers, empty for those that are as good.
    """
    rows = []
    for metric in known["metric"].unique():
        of_metric = known[known["metric"] == metric]
        for answer in (*ANSWERS, STILL):
            pairs = of_metric[of_metric["answer"] == answer]
            if len(pairs):
                rows.append({"metric": metric, "answer": answer} | _row(answer, pairs))
    names = ("metric", "answer", "pairs", "value", "baseline", "worse", "verdict")
    return pd.DataFrame(rows, columns=list(names))


def likes(known: pd.DataFrame) -> dict[str, str]:
    """By metric, the bad answers that it does not put clearly below the baseline, with commas.

    Empty for a metric that puts all of them below; a metric without known answers is not there.
    """
    table = answer_table(known)
    return {
        str(metric): ", ".join(rows.loc[rows["verdict"] == LIKED, "answer"])
        for metric, rows in table.groupby("metric", sort=False)
    }


def liked_by(metric: str, known: pd.DataFrame) -> dict[str, str]:
    """The column `_likes` of one metric; nothing where the study has no known answers of it."""
    return {f"{name}{LIKES}": bad for name, bad in likes(known).items() if name == metric}


def known_columns(known: pd.DataFrame) -> dict[str, str | float]:
    """What a summary says of every metric: the bad answers that it likes, and its scale.

    Returns:
        Of each metric `_likes`, and `_other_seed`: its mean for another seed of the same prompt,
        which is as good.
    """
    table = answer_table(known)
    seeds = table[table["answer"] == ANSWERS[len(BAD_ANSWERS)]].set_index("metric")["value"]
    liked = {f"{metric}{LIKES}": bad for metric, bad in likes(known).items()}
    return liked | {f"{metric}{OTHER_SEED}": value for metric, value in seeds.items()}


def _row(answer: str, pairs: pd.DataFrame) -> dict[str, object]:
    both = pairs.dropna(subset=["value", "baseline"])
    sign = 1 if bool(pairs["higher_is_better"].iloc[0]) else -1
    loss = (sign * (both["baseline"] - both["value"])).to_numpy(float)
    worse, better = int((loss > 0).sum()), int((loss < 0).sum())
    row: dict[str, object] = {
        "pairs": len(both),
        "value": float(both["value"].mean()),
        "baseline": float(both["baseline"].mean()),
        "worse": worse / len(loss) if len(loss) else np.nan,
        "verdict": "",
    }
    if answer in (*BAD_ANSWERS, STILL):
        row["verdict"] = _verdict(loss, worse, better)
    return row


def _verdict(loss: np.ndarray, worse: int, better: int) -> str:
    if len(loss) and loss.mean() <= 0:
        return LIKED
    if 0.5 ** len(loss) >= LEVEL:
        return OPEN  # even if the answer is worse in every pair
    told = binomtest(worse, max(worse + better, 1), alternative="greater").pvalue < LEVEL
    return TOLD if told else LIKED
