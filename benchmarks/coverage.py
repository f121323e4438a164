"""Whether intervals hold: coverage on the stored studies as populations.

`python -m benchmarks.coverage` prints a table in Markdown, in about half an hour.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from functools import cache
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer

from benchmarks.populations import DIFFERENCE, Array, Population, draw, populations
from sdbench.analysis.pairs import changed_share, pair_interval, pair_median
from sdbench.analysis.stats import Interval
from sdbench.records.metrics import scale_of

PROMPTS = (8, 16, 64, 128)
SEEDS = (1, 4)
DRAWS = 300
FIGURES = ("mean", "median", "changed")
ROUNDING = 1e-9

Values = pd.Series  # of a sample or a population, with the level `prompt_id`


class Figure(NamedTuple):
    """A figure that has an interval.

    Attributes:
        name: of the column.
        interval: of a sample.
        holds: whether an interval holds the population's figure.
    """

    name: str
    interval: Callable[[Values], Interval]
    holds: Callable[[Interval, Array], bool]


def figures(metric: str) -> list[Figure]:
    """What a table shows of a metric with an interval."""
    if metric == DIFFERENCE:
        return [
            Figure(
                "mean", lambda own: pair_interval(own, "alignment", difference=True), _holds_mean
            )
        ]
    shown = [
        Figure("mean", lambda own: pair_interval(own, metric), _holds_mean),
        Figure("median", pair_median, _holds_median),
    ]
    if scale_of(metric).changed is not None:

        def holds(found: Interval, values: Array) -> bool:
            share = changed_share(_sample(values[:, None]), metric).estimate
            return found.lo - ROUNDING <= share <= found.hi + ROUNDING

        shown.append(Figure("changed", lambda own: changed_share(own, metric), holds))
    return shown


def coverage(
    figure: Figure, values: Array, *, prompts: int, seeds: int, draws: int, seed: int = 0
) -> tuple[float, float]:
    """Share of draws whose interval holds the population's figure, and the median width.

    Both are NaN where no draw has an interval.

    Raises:
        AssertionError: some draws of a size have an interval, and some do not.
    """
    generator = np.random.default_rng(seed)
    found = [
        figure.interval(_sample(draw(values, prompts, seeds, generator))) for _ in range(draws)
    ]
    given = [not np.isnan(own.lo) for own in found]
    if any(given) != all(given):
        raise AssertionError(f"an interval of {figure.name} was given for some draws alone")
    if not any(given):
        return np.nan, np.nan
    held = np.mean([figure.holds(own, values) for own in found])
    return float(held), float(np.median([own.hi - own.lo for own in found]))


def table(
    chosen: Iterable[Population],
    *,
    prompts: Sequence[int] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    draws: int = DRAWS,
    shown: Container[str] = FIGURES,
) -> pd.DataFrame:
    """Coverage of figures by metric, prompts and seeds, over the populations.

    Returns:
        `metric`, `figure`, `prompts`, `seeds`, `populations`, then of their coverage the `least`,
        the `middle` and the `most`, the variant with the `least`, and the median `width`.
    """
    by_metric: dict[str, list[Population]] = {}
    for population in chosen:
        by_metric.setdefault(population.metric, []).append(population)

    rows = []
    for metric, own in by_metric.items():
        for figure in (one for one in figures(metric) if one.name in shown):
            for count in prompts:
                for per_prompt in seeds:
                    both = np.array(
                        [
                            coverage(
                                figure, one.values, prompts=count, seeds=per_prompt, draws=draws
                            )
                            for one in own
                        ]
                    )
                    rows.append(
                        [metric, figure.name, count, per_prompt, len(own), *_summary(both, own)]
                    )
    names = ["metric", "figure", "prompts", "seeds", "populations"]
    return pd.DataFrame(rows, columns=[*names, "least", "of", "middle", "most", "width"])


def _summary(both: Array, own: Sequence[Population]) -> list[float | str]:
    """The least coverage and whose it is, the middle, the most, and the middle width."""
    held, width = both.T
    if np.isnan(held).all():
        return [np.nan, "", np.nan, np.nan, np.nan]
    least = own[int(held.argmin())].variant
    return [held.min(), least, float(np.median(held)), held.max(), float(np.median(width))]


def _sample(values: Array) -> Values:
    """(prompts, seeds) as a metric of pairs."""
    return pd.Series(values.ravel(), index=_index(*values.shape))


@cache
def _index(prompts: int, seeds: int) -> pd.MultiIndex:
    return pd.MultiIndex.from_product([range(prompts), range(seeds)], names=["prompt_id", "seed"])


def _holds_mean(found: Interval, values: Array) -> bool:
    return bool(found.lo - ROUNDING <= values.mean() <= found.hi + ROUNDING)


def _holds_median(found: Interval, values: Array) -> bool:
    """Every value between the two in the middle is a median."""
    low, high = np.quantile(values, 0.5, method="lower"), np.quantile(values, 0.5, method="higher")
    return bool(found.lo <= high and low <= found.hi)


def main(
    draws: Annotated[int, typer.Option(help="samples of each population")] = DRAWS,
    metric: Annotated[list[str] | None, typer.Option(help="all by default")] = None,
    figure: Annotated[list[str] | None, typer.Option(help="mean, median, changed; all")] = None,
    prompts: Annotated[list[int] | None, typer.Option(help="8, 16, 64, 128 by default")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="of a prompt; 1 and 4 by default")] = None,
) -> None:
    """Print the coverage of every interval that tables show."""
    chosen = [one for one in populations() if not metric or one.metric in metric]
    found = table(
        chosen,
        prompts=prompts or PROMPTS,
        seeds=seeds or SEEDS,
        draws=draws,
        shown=figure or FIGURES,
    )
    typer.echo(f"| {' | '.join(map(str, found))} |\n|{' --- |' * len(found.columns)}")
    for row in found.itertuples(index=False):
        cells = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row]
        typer.echo(f"| {' | '.join('-' if cell == 'nan' else cell for cell in cells)} |")


if __name__ == "__main__":
    typer.run(main)
