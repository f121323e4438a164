"""How often a table sets a beaten variant in bold, by drawing stored tables again.

`python -m benchmarks.bold`: the stored pairs and repeats are the population, so what is true of it
is known. Tables are drawn from it with replacement, and judged by the rule before and the one now.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray
from scipy.special import stdtrit

import sdbench
from sdbench.analysis.dominance import BEATEN, EFFICIENT, dominance
from sdbench.analysis.repeats import complete_repeats
from sdbench.analysis.shared import metric_values
from sdbench.records.names import BASELINE

STORED = Path(__file__).parents[1] / "results" / "mini-sd" / "methods"
Flags = NDArray[np.bool_]


class Population(NamedTuple):
    """The figures of a study that lower is better in.

    Attributes:
        logs: logarithms of the loop's times, one row per repeat, one column per variant.
        losses: of the metric, one row per pair.
    """

    logs: pd.DataFrame
    losses: pd.DataFrame


class Rates(NamedTuple):
    """What drawn tables said, each entry a share of the tables or a mean number of variants.

    Attributes:
        dominated: tables with a variant in bold that another beats in time, mean and most pairs.
        dominated_in_mean: the same of time and mean alone.
        efficient: variants in bold that no other beats in time, mean and most pairs.
        wrongly_beaten: tables in which such a variant is called beaten.
        beaten: variants called beaten.
    """

    dominated: float
    dominated_in_mean: float
    efficient: float
    wrongly_beaten: float
    beaten: float


def stored(quality: Path, timing: Path, metric: str = "lpips") -> Population:
    """The population of two stored studies, in a metric that compares with the baseline."""
    values = metric_values(sdbench.read(quality), metric)
    if BASELINE not in values:
        values[BASELINE] = 0.0
    repeats = complete_repeats(sdbench.read(timing))
    times = repeats.pivot_table("denoise_s", index="repeat", columns="variant")
    names = [name for name in times if name in values]
    return Population(times[names].map(math.log), values[names].dropna())


def dominated(population: Population, *, most: bool) -> Flags:
    """Which variants another one beats: as fast and as good, and not equal in both.

    Args:
        population: all of it.
        most: whether most pairs have to agree with the mean.
    """
    values = population.losses.to_numpy()
    difference = values[:, :, None] - values[:, None, :]
    slower = population.logs.to_numpy().mean(0)[:, None] - population.logs.to_numpy().mean(0)
    worse = difference.mean(0)
    beats = (slower >= 0) & (worse >= 0) & ((slower > 0) | (worse > 0))
    if most:
        beats &= np.sign(difference).mean(0) >= 0
    return np.asarray(beats.any(1))


def drawn(population: Population, rng: np.random.Generator, *, repeats: int) -> Population:
    """A table of as many prompts, and of some repeats, with replacement."""
    logs, losses = population
    prompts, labels = np.unique(losses.index.get_level_values("prompt_id"), return_inverse=True)
    members = [np.flatnonzero(labels == place) for place in range(len(prompts))]
    chosen = [members[place] for place in rng.integers(len(prompts), size=len(prompts))]
    own = np.repeat(np.arange(len(prompts)), [len(rows) for rows in chosen])
    index = pd.MultiIndex.from_arrays([own, np.arange(len(own))], names=["prompt_id", "seed"])
    pairs = losses.iloc[np.concatenate(chosen)].set_axis(index)
    return Population(logs.iloc[rng.integers(len(logs), size=repeats)], pairs)


def before(table: Population) -> Flags:
    """The rule before: no variant saves at least as much, as estimated, and has a better mean.

    A saving against the baseline whose 95 % interval holds 0 counted as none.
    """
    ratios = table.logs.sub(table.logs[BASELINE], axis=0).to_numpy()
    half = stdtrit(len(ratios) - 1, 0.975) * ratios.std(0, ddof=1) / np.sqrt(len(ratios))
    saved = np.where(np.abs(ratios.mean(0)) <= half, 0, -ratios.mean(0))
    loss = table.losses.to_numpy().mean(0)
    as_fast, faster = saved >= saved[:, None], saved > saved[:, None]
    as_good, better = loss <= loss[:, None], loss < loss[:, None]
    return ~((as_fast & better) | (faster & as_good)).any(1)


def rates(
    population: Population, *, tables: int, repeats: int, seed: int = 0
) -> tuple[Rates, Rates]:
    """What the rule before and the one now say of drawn tables."""
    rng = np.random.default_rng(seed)
    bold: list[list[Flags]] = [[], []]
    beaten = []
    for _ in range(tables):
        table = drawn(population, rng, repeats=repeats)
        told = dominance(*table, higher_is_better=False, most=True, reference=BASELINE)[
            "verdict"
        ].to_numpy()
        bold[0].append(before(table))
        bold[1].append(told == EFFICIENT)
        beaten.append(told == BEATEN)
    none = np.zeros_like(beaten)
    old, new = (
        _rates(population, np.array(b), np.array(n))
        for b, n in zip(bold, (none, beaten), strict=True)
    )
    return old, new


def _rates(population: Population, bold: Flags, beaten: Flags) -> Rates:
    """Of (tables, variants)."""
    false, in_mean = (dominated(population, most=most) for most in (True, False))
    return Rates(
        dominated=float((bold & false).any(1).mean()),
        dominated_in_mean=float((bold & in_mean).any(1).mean()),
        efficient=float((bold & ~false).sum(1).mean()),
        wrongly_beaten=float((beaten & ~false).any(1).mean()),
        beaten=float(beaten.sum(1).mean()),
    )


def main(
    tables: Annotated[int, typer.Option(help="drawn for each number of repeats")] = 200,
    repeats: Annotated[list[int] | None, typer.Option(help="6 and 24 by default")] = None,
    quality: Annotated[Path, typer.Option(help="a study of images")] = STORED / "quality",
    timing: Annotated[Path, typer.Option(help="a study of times")] = STORED / "time",
    metric: Annotated[str, typer.Option(help="one in which lower is better")] = "lpips",
) -> None:
    """Print how often a table says what is not so, and how much it finds."""
    population = stored(quality, timing, metric)
    false = dominated(population, most=True)
    typer.echo(
        f"{len(false)} variants, {len(population.losses)} pairs, {len(population.logs)} repeats: "
        f"{(~false).sum()} are efficient, {false.sum()} are not"
    )
    for count in repeats or (6, 24):
        for rule, rate in zip(
            ("before", "now"), rates(population, tables=tables, repeats=count), strict=True
        ):
            typer.echo(
                f"{count} repeats, {tables} tables, {rule}: a dominated variant is bold in "
                f"{rate.dominated:.1%} of tables ({rate.dominated_in_mean:.1%} by the mean alone); "
                f"{rate.efficient:.1f} efficient variants are bold; an efficient one is called "
                f"beaten in {rate.wrongly_beaten:.1%}; {rate.beaten:.1f} are called beaten"
            )


if __name__ == "__main__":
    typer.run(main)
