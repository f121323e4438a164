"""Why the mixed model of blind tests is our own: coverage next to that of statsmodels.

`pip install statsmodels`, then `python -m benchmarks.mixed_models` prints a table, in 3 minutes.
"""

from __future__ import annotations

import warnings
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from scipy import sparse
from scipy.special import expit

from benchmarks.perceive import Array, crossed
from sdbench.analysis.perception.mixed import mixed_shares

EXPERIMENTS = 100
MEAN = 1.0
CASES = ((8, 24, 0.5), (12, 24, 0.7))


def of_statsmodels(tests: pd.DataFrame, how: str) -> tuple[float, float]:
    """The interval of a share by `BinomialBayesMixedGLM`.

    Args:
        tests: of one variant.
        how: "fit_vb" or "fit_map".
    """
    from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM

    person, pair = (tests[name].to_numpy() for name in ("person", "prompt_id"))
    people, pairs = person.max() + 1, pair.max() + 1
    rows = np.tile(np.arange(len(tests)), 2)
    places = np.concatenate([person, people + pair])
    effects = sparse.csr_matrix((np.ones(len(rows)), (rows, places)))
    kinds = np.repeat([0, 1], [people, pairs])
    right = tests["correct"].to_numpy(float)
    one = np.ones((len(tests), 1))
    model = BinomialBayesMixedGLM(right, one, effects, kinds, vcp_p=1, fe_p=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge
        found = getattr(model, how)()
    ends: Array = found.fe_mean[0] + 1.96 * found.fe_sd[0] * np.array([-1, 1])
    return float(expit(ends[0])), float(expit(ends[1]))


def of_sdbench(tests: pd.DataFrame) -> tuple[float, float]:
    """The same interval by `mixed_shares`."""
    row = mixed_shares(tests).iloc[0]
    return float(row["mixed_lo"]), float(row["mixed_hi"])


def main(experiments: Annotated[int, typer.Option(help="of each case")] = EXPERIMENTS) -> None:
    """Print how often intervals of 95 % hold the truth."""
    typer.echo("| people | pairs | deviations | fit_vb | fit_map | sdbench |")
    typer.echo("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for people, pairs, deviation in CASES:
        generator = np.random.default_rng(0)
        held = np.zeros(3)
        for _ in range(experiments):
            tests = crossed(people, pairs, (deviation, deviation), MEAN, generator)
            intervals = [*(of_statsmodels(tests, how) for how in ("fit_vb", "fit_map"))]
            intervals.append(of_sdbench(tests))
            held += [lo <= expit(MEAN) <= hi for lo, hi in intervals]
        shares = " | ".join(f"{one:.2f}" for one in held / experiments)
        typer.echo(f"| {people} | {pairs} | {deviation:g} | {shares} |")


if __name__ == "__main__":
    typer.run(main)
