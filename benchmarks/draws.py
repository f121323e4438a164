"""How lucky random masks are, by stored single-step sensitivities (`python -m benchmarks.draws`).

The sum over a mask's unguided steps stands for what the mask costs: a mask is unlucky where most
others cost less.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer
from jaxtyping import Float

from sdbench.analysis.sensitivity import sensitivity_curve
from sdbench.records.store import read_sweep
from sdbench.variants.controls import DRAWS
from sdbench.variants.schedule import GuidanceSchedule, Mask

SWEEP = Path("results/mini-sd/sensitivity-single")
OTHERS = 20_000  # masks that a mask is compared with
SETS = 200  # of draws, whose means are compared


def step_costs(sweep: Path, metric: str = "lpips") -> Float[np.ndarray, " steps"]:
    """Mean of a metric where one step alone is unguided, by step."""
    curve = sensitivity_curve(read_sweep(sweep).sensitivity, metric)
    single = curve[curve["kind"] == "single"].sort_values("start")
    return single[metric].to_numpy(dtype=float)


class Luck(NamedTuple):
    """How draws of a number of unguided steps stand among all masks of that number.

    Attributes:
        unguided: steps.
        prefix_of_one: share of masks that cost less than the first steps of one permutation, as
            `random:K@0` was drawn before draws were balanced.
        first: the same share of the first balanced draw.
        mean: the same share of the mean of the balanced draws.
        off: that mean over the mean of all masks, less 1.
        spread: standard deviation of `off` over sets of balanced draws.
        independent_spread: the same of sets of independent draws.
    """

    unguided: int
    prefix_of_one: float
    first: float
    mean: float
    off: float
    spread: float
    independent_spread: float


def luck(
    costs: Float[np.ndarray, " steps"], unguided: int, *, draws: int = DRAWS, sets: int = SETS
) -> Luck:
    """Where the draws of a number of unguided steps stand.

    Args:
        costs: of every step.
        unguided: steps of a mask.
        draws: of a set.
        sets: of draws.
    """
    steps = len(costs)
    expected = unguided * costs.mean()
    rng = np.random.default_rng(0)
    others = np.sort(_random_costs(costs, unguided, OTHERS, rng))

    def share(cost: float) -> float:
        return float(np.searchsorted(others, cost) / len(others))

    # Sets of later draws are as good as the one that is used.
    numbers = range(draws * sets)
    balanced = np.array([_cost(_dealt(steps, unguided, draw), costs) for draw in numbers])
    means = balanced.reshape(sets, draws).mean(axis=1)
    independent = _random_costs(costs, unguided, draws * sets, rng).reshape(sets, draws)

    prefix = np.random.default_rng(0).permutation(steps)[:unguided]
    return Luck(
        unguided,
        share(float(costs[prefix].sum())),
        share(float(balanced[0])),
        share(float(means[0])),
        float(means[0] / expected - 1),
        float(means.std() / expected),
        float(independent.mean(axis=1).std() / expected),
    )


def _dealt(steps: int, unguided: int, draw: int) -> Mask:
    return GuidanceSchedule.random(steps, unguided, seed=draw).mask


def _cost(mask: Mask, costs: Float[np.ndarray, " steps"]) -> float:
    return float(costs[~np.array(mask)].sum())


def _random_costs(
    costs: Float[np.ndarray, " steps"], unguided: int, count: int, rng: np.random.Generator
) -> Float[np.ndarray, " count"]:
    """Costs of masks that are drawn independently."""
    order = rng.random((count, len(costs))).argsort(axis=1)[:, :unguided]
    return costs[order].sum(axis=1)


class Rows(NamedTuple):
    """Denoiser rows that an image of every draw takes.

    Attributes:
        unguided: steps of a draw.
        alone: a call for each draw.
        shared: branches of one call, which evaluates once what draws have in common.
        with_trunk: the same with the guided trajectory, which branches leave.
    """

    unguided: int
    alone: int
    shared: int
    with_trunk: int


def rows_of(steps: int, unguided: int, *, draws: int = DRAWS) -> Rows:
    """What branching would save: draws that agree so far share their rows."""
    masks = [_dealt(steps, unguided, draw) for draw in range(draws)]
    alone = sum(GuidanceSchedule(mask).nfe for mask in masks)
    guided = (True,) * steps
    return Rows(unguided, alone, _shared(masks), _shared([guided, *masks]))


def _shared(masks: Sequence[Mask]) -> int:
    """Rows of a tree of masks: one for each that differs so far, two where any is guided."""
    rows = 0
    for step in range(len(masks[0])):
        groups: dict[Mask, bool] = {}
        for mask in masks:
            groups[mask[:step]] = groups.get(mask[:step], False) or mask[step]
        rows += sum(1 + is_guided for is_guided in groups.values())
    return rows


def main(
    sweep: Annotated[Path, typer.Option(help="folder of a sweep of single steps")] = SWEEP,
    draws: Annotated[int, typer.Option(help="balanced draws")] = DRAWS,
) -> None:
    """Print how lucky one draw and the mean of several are, and what branching would save."""
    costs = step_costs(sweep)
    steps = len(costs)
    shares = [round(steps * tenth / 10) for tenth in range(1, 10)]

    table = pd.DataFrame([luck(costs, unguided, draws=draws) for unguided in shares])
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    rows = pd.DataFrame([rows_of(steps, unguided, draws=draws) for unguided in shares])
    typer.echo(rows.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
