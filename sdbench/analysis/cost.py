"""Why dropping guidance saves less time than work: what steps cost, and where the rest goes.

A call is text, loop and decoding; only the loop gets shorter. A step that evaluates half the rows
takes more than half the time when something in it does not depend on the rows: reading the weights,
or launching the kernels.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sdbench.analysis.predicted import denoise_share, guidance_ratio, step_medians
from sdbench.analysis.stats import Interval, spread
from sdbench.records.names import BASELINE
from sdbench.records.store import Results

NEGLIGIBLE = 0.05  # of an unguided step: a fixed time below it is no reason worth naming


class StepCost(NamedTuple):
    """What steps cost in one study.

    Attributes:
        ratio: R, as `guidance_ratio` says.
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
        ValueError: one kind of step did not run.
    """
    medians = step_medians(results)
    if medians.empty:
        raise ValueError(f"{results.folder}: no repeat has both guided and unguided steps")
    guided_s, unguided_s = (float(seconds) for seconds in medians.median())
    return StepCost(
        ratio=guidance_ratio(results),
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


def saving_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Ideal, predicted and measured saving, of the loop and of the call, without the baseline's.

    Args:
        summary: as `summarise` returns it.

    Returns:
        One row per variant: `variant`, `ideal_saving`; `predicted_denoise_saving` and
        `denoise_saving` (of the loop), `share_of_ideal` (measured over ideal, of the loop);
        `predicted_saving` and `saving` (of the call). All but the ideal ones have their interval,
        `_lo` and `_hi`, behind them. `disturbance` is the summary's.
    """
    table = summary[summary["variant"] != BASELINE].copy()

    # Of no evaluation saved there is no share.
    table["share_of_ideal"] = table["denoise_saving"] / table["ideal_saving"].replace(0, np.nan)

    columns = ["variant", "ideal_saving"]
    columns += _with_ends("predicted_denoise_saving", "denoise_saving")
    columns += ["share_of_ideal", *_with_ends("predicted_saving", "saving"), "disturbance"]
    return table[columns].reset_index(drop=True)


def _with_ends(*names: str) -> list[str]:
    """Columns that have their interval behind them."""
    return [f"{name}{end}" for name in names for end in ("", "_lo", "_hi")]
