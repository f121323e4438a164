"""A metric by (prompt, seed) pair, of variants of one study or of two that share pairs."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from sdbench.analysis.tables import pair_means
from sdbench.records.store import Results

SETTINGS = ("model", "num_steps", "guidance_scale")
"""What two studies must have in common, so that their pairs are the same."""
PAIR = ["prompt_id", "seed"]

One = tuple[Results, str]
"""A study and one of its variants."""


def metric_values(results: Results, metric: str) -> pd.DataFrame:
    """A metric with a row per pair (`prompt_id`, `seed`) and a column per variant that has it.

    Raises:
        ValueError: no image has the metric.
    """
    means = pair_means(results)
    if metric not in means or means[metric].isna().all():
        raise ValueError(f"no image of {results.folder} has {metric}")
    values = means.pivot_table(metric, index=PAIR, columns="variant", observed=True)
    return values.astype(float).dropna(axis=1, how="all")


def shared_pairs(
    first: One, second: One, metric: str, *, some: bool = False
) -> tuple[pd.DataFrame, str]:
    """A metric of two variants, joined by the caption's text and the seed.

    An identifier of a prompt means nothing outside of its study, so it joins nothing.

    Args:
        first: a study and its variant.
        second: likewise; of the same study or of another.
        metric: a column of both studies' images.
        some: whether to go on with the pairs that both have, where one has others too.

    Returns:
        The columns `first` and `second`, one row per shared pair, with the caption as the level
        `prompt_id`; and how many of how many pairs these are, in words, empty where they are all.

    Raises:
        ValueError: the studies differ in the model, the steps or the scale; a variant has no such
            metric; a pair is not shared and `some` was not asked for, or none is shared.
    """
    _require_same_settings(first[0], second[0])
    values = {"first": _by_caption(*first, metric), "second": _by_caption(*second, metric)}
    joined = pd.DataFrame(values).dropna()

    left_out = " and ".join(
        f"{len(joined)} of {len(own)} pairs of '{variant}'"
        for own, (_, variant) in zip(values.values(), (first, second), strict=True)
        if len(own) > len(joined)
    )
    if left_out and (joined.empty or not some):
        # Prompts that only seem to be the same are the likeliest cause.
        twins = _other_texts(first[0], second[0])
        told = f"; prompt '{twins[0]}' has another text in each study" if twins else ""
        raise ValueError(f"caption and seed are shared by {left_out}, expected all{told}")
    return joined, left_out


def _by_caption(results: Results, variant: str, metric: str) -> pd.Series[float]:
    columns = ["unit", "variant", "prompt_id", "prompt", "seed"]
    images = results.images
    if metric in images:
        images = images.loc[images["variant"] == variant, [*columns, metric]]
    if metric not in images or images[metric].isna().all():
        there = ", ".join(map(str, metric_values(results, metric)))
        raise ValueError(f"{results.folder}: '{variant}' has no {metric}; there are {there}")

    own = pair_means(replace(results, images=images)).dropna(subset=[metric])
    own["prompt_id"] = own["prompt_id"].astype(str).map(_texts(images))

    # A caption that stands twice in a study is one pair with each seed.
    return own.groupby(PAIR)[metric].mean()


def _texts(images: pd.DataFrame) -> dict[str, str]:
    prompts = images[["prompt_id", "prompt"]].drop_duplicates("prompt_id").astype(str)
    return dict(prompts.itertuples(index=False, name=None))


def _other_texts(first: Results, second: Results) -> list[str]:
    """Identifiers that both studies have, of different prompts."""
    one, other = _texts(first.images), _texts(second.images)
    return sorted(name for name in one.keys() & other.keys() if one[name] != other[name])


def _require_same_settings(first: Results, second: Results) -> None:
    for name in SETTINGS:
        one, other = (results.study.get(name) for results in (first, second))
        if one != other:
            raise ValueError(
                f"{first.folder} has {name} {one!r}, {second.folder} has {other!r}: "
                "their pairs are not the same"
            )
