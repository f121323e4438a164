"""A metric by (prompt, seed) pair, of variants of one study or of two that share pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sdbench.analysis.paired_tests import slower_tests
from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.analysis.tables import image_means, pair_means
from sdbench.records.names import BASELINE
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
        raise ValueError(f"{results.folder}: no image has a value of {metric}")
    values = means.pivot_table(metric, index=PAIR, columns="variant", observed=True)
    return values.astype(float).dropna(axis=1, how="all")


def mask_tests(results: Results, metric: str, names: list[str]) -> NDArray[np.float64] | None:
    """Whether variants differ for other masks, too, where a variant is the mean over several draws.

    Student's t tests over the means of draws; the masks are a sample of all masks, as the prompts
    are of all prompts.

    Args:
        results: of a study.
        metric: a column of its images.
        names: of the variants.

    Returns:
        (variants, variants): the p-value that the row's metric is above the column's; 0 where
        neither has several draws. None where no variant has.
    """
    images = image_means(results)
    draws = images.groupby(["variant", "draw"], observed=True)[metric].mean()
    means = draws.reset_index().pivot_table(metric, index="draw", columns="variant", observed=True)
    several = [name for name in names if name in means and means[name].count() > 1]
    if not several:
        return None

    # A variant without masks is the same beside each draw of another.
    single = images.groupby("variant", observed=True)[metric].mean()
    table = pd.DataFrame(
        {name: means[name] if name in several else single.get(name, 0.0) for name in names}
    )
    p = slower_tests(table.to_numpy(dtype=float))
    drawn = np.isin(names, several)
    return np.where(drawn[:, None] | drawn, p, 0.0)


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
        ValueError: the studies differ in the model, the steps or the scale, or their images are
            compared with those of other variants; a variant has no such metric; a pair is not
            shared and `some` was not asked for, or none is shared.
    """
    _require_same_settings(first[0], second[0])
    if metric not in WITHOUT_REFERENCE:
        _require_same_reference(first[0], second[0])
    values = {
        name: _by_caption(*one, metric).groupby(PAIR).mean()
        for name, one in (("first", first), ("second", second))
    }
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
        raise ValueError(
            f"both variants have the caption and seed of {left_out}; expected all{told}"
        )
    return joined, left_out


def image_differences(first: One, second: One, metric: str) -> pd.Series[float] | None:
    """The first less the second by image, where a variant makes several images of a pair.

    Args:
        first: a study and its variant.
        second: likewise.
        metric: a column of both studies' images.

    Returns:
        Values with the levels `prompt_id` (the caption), `seed` and `draw`, of shared pairs; None
        where neither variant has several draws.
    """
    one, other = (
        _by_caption(*of, metric).reset_index().fillna({"draw": 0}) for of in (first, second)
    )
    several = [len(side["draw"].unique()) > 1 for side in (one, other)]
    if not any(several):
        return None

    # A variant without draws stands beside each draw of the other.
    keys = [*PAIR, "draw"] if all(several) else PAIR
    sides = [
        side if own else side.drop(columns="draw")
        for side, own in zip((one, other), several, strict=True)
    ]
    both = sides[0].merge(sides[1], on=keys, suffixes=("_first", "_second"))
    both = both.set_index([*PAIR, "draw"])
    return both[f"{metric}_first"] - both[f"{metric}_second"]


def _by_caption(results: Results, variant: str, metric: str) -> pd.Series[float]:
    columns = ["unit", "variant", "prompt_id", "prompt", "seed", "draw"]
    images = results.images
    if metric in images:
        images = images.loc[images["variant"] == variant, [*columns, metric]]
    if metric not in images or images[metric].isna().all():
        there = ", ".join(map(str, metric_values(results, metric)))
        raise ValueError(f"{results.folder}: '{variant}' has no {metric}; there are {there}")

    own = image_means(replace(results, images=images)).dropna(subset=[metric])
    own["prompt_id"] = own["prompt_id"].astype(str).map(_texts(images))

    # A caption that stands twice in a study is one pair with each seed.
    return own.groupby([*PAIR, "draw"], dropna=False)[metric].mean()


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


def _require_same_reference(first: Results, second: Results) -> None:
    own, other = (str(results.study.get("reference", BASELINE)) for results in (first, second))
    if own != other:
        raise ValueError(
            f"the images of one study are compared with {own}, those of the other with {other}"
        )
