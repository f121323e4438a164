"""Whether intervals hold: coverage on the stored studies as populations.

`python -m benchmarks.coverage` prints a table in Markdown, in about three minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray

from benchmarks.many_intervals import Ends, mean_ends, median_ends, share_ends
from benchmarks.populations import DIFFERENCE, Array, Population, draw, populations
from sdbench.analysis.pairs import changed_share, pair_interval, pair_median
from sdbench.analysis.stats import Interval
from sdbench.records.metrics import MANY, scale_of

PROMPTS = (8, 16, 64, 128)
SEEDS = (1, 4)
DRAWS = 300
FIGURES = ("mean", "median", "changed")
ROUNDING = 1e-9

Values = pd.Series  # of a sample, with the level `prompt_id`
Flags = NDArray[np.bool_]


class Figure(NamedTuple):
    """A figure that has an interval.

    Attributes:
        name: of the column.
        interval: of a sample, as tables have it.
        ends: of many samples (sample, prompt, seed), the same.
        holds: which of the intervals hold the population's figure.
    """

    name: str
    interval: Callable[[Values], Interval]
    ends: Callable[[Array], Ends]
    holds: Callable[[Ends, Array], Flags]


def figures(metric: str) -> list[Figure]:
    """What a table shows of a metric with an interval."""
    if metric == DIFFERENCE:
        bounds = scale_of("alignment").differences
        return [
            Figure(
                "mean",
                lambda own: pair_interval(own, "alignment", difference=True),
                lambda samples: mean_ends(samples, bounds=bounds, fewest=MANY),
                _holds_mean,
            )
        ]
    scale = scale_of(metric)
    shown = [
        Figure(
            "mean",
            lambda own: pair_interval(own, metric),
            lambda samples: mean_ends(samples, bounds=scale.bounds, fewest=scale.prompts),
            _holds_mean,
        ),
        Figure("median", pair_median, median_ends, _holds_median),
    ]
    if scale.changed is not None:
        threshold, higher_is_better = scale.changed, scale.higher_is_better

        def flags(values: Array) -> Array:
            return (values < threshold if higher_is_better else values > threshold).astype(float)

        shown.append(
            Figure(
                "changed",
                lambda own: changed_share(own, metric),
                lambda samples: share_ends(flags(samples)),
                lambda found, values: _holds_mean(found, flags(values)),
            )
        )
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
    samples = np.stack([draw(values, prompts, seeds, generator) for _ in range(draws)])
    found = figure.ends(samples)
    given = ~np.isnan(found.lo)
    if given.any() != given.all():
        raise AssertionError(f"an interval of {figure.name} was given for some draws alone")
    if not given.any():
        return np.nan, np.nan
    return float(figure.holds(found, values).mean()), float(np.median(found.hi - found.lo))


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


def _holds_mean(found: Ends, values: Array) -> Flags:
    mean = values.mean()
    return (found.lo - ROUNDING <= mean) & (mean <= found.hi + ROUNDING)


def _holds_median(found: Ends, values: Array) -> Flags:
    """Every value between the two in the middle is a median."""
    low, high = np.quantile(values, 0.5, method="lower"), np.quantile(values, 0.5, method="higher")
    return (found.lo <= high) & (low <= found.hi)


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
