"""What papers say next to what was measured, by variant: no published figure is copied by hand."""

import pandas as pd


def with_published(table: pd.DataFrame, published: pd.DataFrame, *, paper: str) -> pd.DataFrame:
    """The rows of a table for which a paper has figures, with these behind them.

    Args:
        table: with a column `variant`, such as that of `summarise`.
        published: one row per figure: `paper`, `variant`, `metric`, `value`, `unit`; as in
            `results/published.csv`.
        paper: whose figures.

    Returns:
        The rows in their order, and a column "published METRIC" for each of the paper's metrics, in
        the paper's unit.

    Raises:
        ValueError: the paper has no figures, or several of one variant and metric (on several
            machines).
    """
    figures = published[published["paper"] == paper]
    if figures.empty:
        raise ValueError(
            f"no figures of '{paper}'; there are: {', '.join(published['paper'].unique())}"
        )
    if figures.duplicated(["variant", "metric"]).any():
        raise ValueError(
            f"'{paper}' has several figures of one variant and metric: choose a machine first"
        )
    wide = figures.pivot_table("value", index="variant", columns="metric", sort=False)
    return table.merge(wide.add_prefix("published ").reset_index(), on="variant")
