"""Why dropping guidance saves less time than work: what steps cost, and where the rest goes.

A call is text, loop and decoding; only the loop gets shorter. A step that evaluates half the rows
takes more than half the time when something in it does not depend on the rows: reading the weights,
or launching the kernels.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sdbench.analysis.stats import Interval, ratio_interval, spread
from sdbench.analysis.tables import denoise_share, step_medians
from sdbench.records.names import BASELINE
from sdbench.records.store import Results

NEGLIGIBLE = 0.05  # of an unguided step: a fixed time below it is no reason worth naming


class StepCost(NamedTuple):
    """What steps cost in one study.

    Attributes:
        ratio: R, the time of a guided step over that of an unguided one, with its 95 % interval
            over repeats.
        guided_s: median time of a guided step.
        unguided_s: median time of an unguided step.
        fixed_s: the part of a step that does not depend on its rows, `2 * unguided_s - guided_s`;
            not below 0.
        denoise_share: share of the loop in a call of the baseline.
    """

    ratio: Interval
    guided_s: float
    unguided_s: float
    fixed_s: float
    denoise_share: float


def step_cost(results: Results) -> StepCost:
    """Time of guided and unguided steps, and the loop's share of a call.

    Raises:
        ValueError: no call holds both kinds.
    """
    medians = step_medians(results)
    if medians.empty:
        raise ValueError(f"{results.folder}: no finished call has both guided and unguided steps")
    guided_s, unguided_s = (float(seconds) for seconds in medians.median())
    return StepCost(
        ratio=ratio_interval(medians[True], medians[False]),
        guided_s=guided_s,
        unguided_s=unguided_s,
        fixed_s=max(0.0, 2 * unguided_s - guided_s),
        denoise_share=denoise_share(results),
    )


def cost_point(results: Results) -> dict[str, Any]:
    """One study's place in a sweep over batches, sizes and models.

    Returns:
        `model`, `batch`, `height`, `width`, `ratio` (R) with `ratio_lo` and `ratio_hi`, `guided_s`,
        `unguided_s`, `fixed_s`, `denoise_share`.

    Raises:
        ValueError: as `step_cost` says.
    """
    cost = step_cost(results)
    point: dict[str, Any] = {
        name: results.study[name] for name in ("model", "batch", "height", "width")
    }
    point |= spread("ratio", cost.ratio)
    return point | {
        name: getattr(cost, name) for name in ("guided_s", "unguided_s", "fixed_s", "denoise_share")
    }


def reason(cost: StepCost, *, read_s: float) -> str:
    """What keeps the saving from the ideal one, in a few words.

    Args:
        cost: of the steps of one study.
        read_s: seconds to read the denoiser's weights once at the device's measured bandwidth.
    """
    reasons = []
    if cost.fixed_s > NEGLIGIBLE * cost.unguided_s:
        fixed = f"{cost.fixed_s / cost.unguided_s:.0%} of an unguided step depend on no row"
        if read_s > 0.5 * cost.fixed_s:
            reasons.append(
                f"memory-bound: {fixed}, reading the weights takes {read_s / cost.unguided_s:.0%}"
            )
        else:
            reasons.append(f"launch-bound: {fixed}, of which reading the weights is little")

    if cost.denoise_share < 1 - NEGLIGIBLE:
        reasons.append(f"fixed share: {1 - cost.denoise_share:.0%} of a call are text and decoding")
    return "; ".join(reasons) or "none: nearly ideal"


def saving_table(summary: pd.DataFrame, cost: StepCost) -> pd.DataFrame:
    """Ideal, predicted and measured saving, of the loop and of the call, without the baseline's.

    Args:
        summary: as `summarise` returns it.
        cost: of the same study.

    Returns:
        One row per variant: `variant`, `ideal_saving`; `predicted_denoise_saving` (of the loop: the
        ideal one times `2 (1 - 1/R)`), `denoise_saving` with its interval, `share_of_ideal`
        (measured over ideal, of the loop); `predicted_saving` and `saving` with its interval (of
        the call).
    """
    table = summary[summary["variant"] != BASELINE].copy()
    table["predicted_denoise_saving"] = table["predicted_saving"] / cost.denoise_share

    # Of no evaluation saved there is no share.
    table["share_of_ideal"] = table["denoise_saving"] / table["ideal_saving"].replace(0, np.nan)

    columns = ["variant", "ideal_saving", "predicted_denoise_saving"]
    columns += [f"denoise_saving{end}" for end in ("", "_lo", "_hi")]
    columns += ["share_of_ideal", "predicted_saving", "saving", "saving_lo", "saving_hi"]
    return table[columns].reset_index(drop=True)
