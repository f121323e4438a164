"""What a study's tables say, by variant and paired against the baseline, or by variant and step.

Which rows belong together is decided here; the intervals are in `stats.py`, units and rounding in
`sdbench.report`.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sdbench.analysis.calls import (
    by_unit,
    complete_repeats,
    finished,
    paired,
    step_counts,
    steps_of,
    timed,
    units_of,
)
from sdbench.analysis.pairs import metric_columns, pair_interval
from sdbench.analysis.stats import Interval, ratio_interval, spread
from sdbench.records.names import BASELINE
from sdbench.records.schema import columns
from sdbench.records.store import Results, read

PAIRS = {
    "runs": ("phase", "status"),
    "images": (
        "variant",
        *(name for name, column in columns("images").items() if column.dtype == "float64"),
    ),
}
"""Columns that `pair_means` needs."""
SUMMARY = {
    "runs": (
        *PAIRS["runs"],
        "variant",
        "repeat",
        "message",
        "batch",
        "latency_s",
        "denoise_s",
        "nfe",
        "flop",
        "accelerated",
        "peak_bytes",
        "exclusive",
    ),
    "steps": ("guided", "rows", "latency_s"),
    "images": PAIRS["images"],
}
"""Columns that `summarise` needs."""


def summarise(results: Results | str | Path) -> pd.DataFrame:
    """One row per variant, the baseline `cfg` first, then as they first ran.

    Times are of measured calls that finished and had the device to themselves. A repeat counts for
    a variant when all its batches did; it is paired with the baseline's same repeat. Metrics are
    averaged over (prompt, seed) pairs, with intervals clustered by prompt. A few images that became
    others can decide a mean, so its interval needs many prompts (`pairs.pair_interval` says how
    many), and the median and the share of changed images stand beside it. The baseline's own
    metrics compare its later repeats with its first: the noise floor.

    Args:
        results: of a study, or the study's folder: then no more is read than is needed here, which
            lets the tables have millions of rows.

    Returns:
        `variant`, `nfe`, `repeats` (paired with the baseline), `pairs` (with images), `failed`
        (calls), `unsupported` (why the variant cannot run on this pipeline; empty where it can),
        `latency_s` (median per call), `saving` (share of the baseline's time), `denoise_saving`
        (the same of the denoising loop), `ideal_saving` (share of the baseline's evaluations not
        made), `predicted_saving` (to expect from the steps' own times), `peak_bytes`, every
        metric (its mean) with its `_median` and, where it has a threshold, the share of images that
        are `_changed`; and `alignment_difference` to the baseline. `saving`, `denoise_saving`,
        metrics and difference have `_lo` and `_hi` behind them, the 95 % interval. What was not
        measured is NaN; so are the baseline's intervals against itself.

    Raises:
        ValueError: the study has no `cfg` calls; as `read` says.
    """
    if not isinstance(results, Results):
        results = read(results, columns=SUMMARY)
    order = _variants(results)

    # What is one number per variant, and what is paired first.
    runs = finished(results)
    repeats = complete_repeats(results.runs)
    pairs = pair_means(results).set_index(["prompt_id", "seed"])
    images = {variant: pairs[pairs["variant"] == variant] for variant in order}

    cost = pd.DataFrame(
        {
            "nfe": runs.groupby("variant")["nfe"].mean(),
            "failed": (results.runs["status"] == "failed").groupby(results.runs["variant"]).sum(),
            "latency_s": timed(results).groupby("variant")["latency_s"].median(),
            "predicted_saving": _predicted_saving(results),
            "peak_bytes": _peak_bytes(results.runs),
        }
    ).reindex(order)

    rows = []
    for variant in order:
        row = {
            "variant": variant,
            "nfe": cost["nfe"][variant],
            "repeats": len(paired(repeats, "latency_s", variant)),
            "pairs": len(images[variant]),
            "failed": int(cost["failed"][variant]),
            "unsupported": _unsupported(results.runs, variant),
            "latency_s": cost["latency_s"][variant],
            **spread("saving", _saving(repeats, "latency_s", variant)),
            **spread("denoise_saving", _saving(repeats, "denoise_s", variant)),
            "ideal_saving": 1 - cost["nfe"][variant] / cost["nfe"][BASELINE],
            "predicted_saving": cost["predicted_saving"][variant],
            "peak_bytes": cost["peak_bytes"][variant],
        }

        # Alignment has no reference image to differ from, so its change is a figure, too.
        for metric in _metrics(results.images):
            row |= metric_columns(images[variant][metric], metric)
        rows.append(row | spread("alignment_difference", _alignment_difference(images, variant)))
    return pd.DataFrame(rows)


def guidance_ratio(results: Results) -> float:
    """R, the time of a guided step over that of an unguided one.

    The median over repeats of the ratio of medians. Where no call holds both kinds of step, all
    calls count. NaN without an unguided step.
    """
    medians = step_medians(results)
    if medians.empty:
        medians = _step_medians(results, steps_of(timed(results), results))
    return float((medians[True] / medians[False]).median())


def step_medians(results: Results) -> pd.DataFrame:
    """Median seconds of a guided step (column True) and of an unguided one (False), by repeat.

    Steps come from calls that hold both kinds, so that nothing but guidance differs between them
    (an adapter's unguided steps cost more) and a slow machine slows both; not from those of an
    accelerator, whose steps differ among themselves, nor are steps in which only some images were
    guided. No row where no call is left.
    """
    units, runs = units_of(results), by_unit(timed(results))
    # A table that does not name accelerators counts their work in the warm-up alone.
    uncounted = runs["flop"].isna() & bool(runs["flop"].notna().any())
    plain = runs[~runs["accelerated"].fillna(uncounted).astype(bool)]
    batch = plain["batch"].reindex(units.categories, fill_value=1).to_numpy("int32")
    timed_units = plain.index.get_indexer(units.categories) >= 0

    # A step in which only some images were guided has rows that are no multiple of the batch.
    rows = results.steps["rows"].to_numpy("int64")
    whole = timed_units[units.codes] & (rows % batch[units.codes] == 0)
    count = step_counts(units, results.steps["guided"], whole)
    both = (count["guided"] > 0) & (count["guided"] < count["steps"])
    return _step_medians(results, whole & both.to_numpy()[units.codes])


def denoise_share(results: Results) -> float:
    """Share of the denoising loop in a call of the baseline: the median over its measured calls."""
    runs = timed(results)
    return float((runs["denoise_s"] / runs["latency_s"])[runs["variant"] == BASELINE].median())


def unguided_share(results: Results) -> "pd.Series[float]":
    """Share of the steps that ran unguided, by variant, in measured calls that finished."""
    steps = results.steps.loc[steps_of(finished(results), results), ["variant", "guided"]].astype(
        {"guided": bool}
    )
    return 1 - steps.groupby("variant")["guided"].mean()


def step_profile(results: Results) -> pd.DataFrame:
    """The course of every variant over its steps, from measured calls that finished.

    Returns:
        One row per variant and step: `variant`, `step`, `guided` (share of the calls), `latency_s`
        (median), `guidance_cosine` (median) with `guidance_cosine_q25` and `guidance_cosine_q75`
        (NaN on unguided steps). Of a step that is guided in some calls only, as where a variant
        has several draws, the time is the mean of both medians by the calls of each kind.
    """
    shown = ["variant", "step", "guided", "latency_s", "guidance_cosine"]
    steps = results.steps.loc[steps_of(finished(results), results), shown].astype({"guided": bool})
    steps["latency_s"] = steps["latency_s"].where(steps_of(timed(results), results)[steps.index])
    steps["variant"] = pd.Categorical(steps["variant"], _variants(results))
    groups = steps.groupby(["variant", "step"], observed=True)
    cosine = groups["guidance_cosine"]
    profile = pd.DataFrame(
        {
            "guided": groups["guided"].mean(),
            "latency_s": _expected_s(steps),
            "guidance_cosine": cosine.median(),
            "guidance_cosine_q25": cosine.quantile(0.25),
            "guidance_cosine_q75": cosine.quantile(0.75),
        }
    )
    return profile.reset_index().astype({"variant": "string"})


def _expected_s(steps: pd.DataFrame) -> "pd.Series[float]":
    """Time of every variant's step: the median, or the mean of those of guided and unguided calls.

    A single median of both kinds would be the one or the other's by a call more or less.
    """
    kinds = steps.groupby(["variant", "step", "guided"], observed=True)["latency_s"]
    calls = kinds.count()
    both = ["variant", "step"]
    total = (calls * kinds.median()).groupby(both, observed=True).sum(min_count=1)
    return total / calls.groupby(both, observed=True).sum()


def _step_medians(results: Results, kept: NDArray[np.bool_]) -> pd.DataFrame:
    units = units_of(results)
    repeat = (
        by_unit(timed(results))["repeat"]
        .reindex(units.categories, fill_value=0)
        .to_numpy("int64")[units.codes[kept]]
    )
    steps = (
        results.steps.loc[kept, ["guided", "latency_s"]]
        .astype({"guided": bool})
        .assign(repeat=repeat)
    )
    medians = steps.groupby(["repeat", "guided"])["latency_s"].median().reset_index()
    return medians.pivot_table("latency_s", index="repeat", columns="guided").reindex(
        columns=[True, False]
    )


def _variants(results: Results) -> list[str]:
    variants = list(results.runs["variant"].unique())
    if BASELINE not in variants:
        there = ", ".join(variants)
        raise ValueError(
            f"{results.folder}: no runs of the baseline {BASELINE!r}; there are {there}"
        )
    return list(dict.fromkeys([BASELINE, *variants]))


def _unsupported(runs: pd.DataFrame, variant: str) -> str:
    reasons = runs.loc[(runs["variant"] == variant) & (runs["status"] == "unsupported"), "message"]
    return "" if reasons.empty else str(reasons.iloc[0])


def _peak_bytes(runs: pd.DataFrame) -> "pd.Series[float]":
    """Highest peak per variant over its measured calls."""
    # On the CPU only the untimed warm-up traces the allocator.
    done = runs[runs["status"] == "ok"].astype({"peak_bytes": "float64"})
    by_phase = done.pivot_table(
        "peak_bytes", index="variant", columns="phase", aggfunc="max", dropna=False
    )
    by_phase = by_phase.reindex(columns=["measured", "warmup"])
    return by_phase["measured"].fillna(by_phase["warmup"])


def _saving(repeats: pd.DataFrame, column: str, variant: str) -> Interval:
    if variant == BASELINE:
        return Interval(0.0, np.nan, np.nan)
    times = paired(repeats, column, variant)
    ratio = ratio_interval(times[variant], times[BASELINE])
    return Interval(1 - ratio.estimate, 1 - ratio.hi, 1 - ratio.lo)


def _predicted_saving(results: Results) -> "pd.Series[float]":
    """Saving per variant if guided and unguided steps cost what they cost in the whole study.

    `denoise_share * (1 - (guided * R + unguided) / (guided_cfg * R))`, which for unguided steps
    within the baseline's step count is `fraction * denoise_share * (1 - 1 / R)`.
    """
    ratio = guidance_ratio(results)
    units, runs = units_of(results), by_unit(finished(results))
    per_call = step_counts(units, results.steps["guided"], np.ones(len(units), bool)).reindex(
        runs.index
    )
    counts = per_call[per_call["steps"] > 0].groupby(runs["variant"]).mean()
    guided, unguided = counts["guided"], counts["steps"] - counts["guided"]
    full = guided.reindex([BASELINE]).item() * ratio
    saving: pd.Series[float] = denoise_share(results) * (1 - (guided * ratio + unguided) / full)
    return saving


def _metrics(images: pd.DataFrame) -> list[str]:
    return [str(name) for name, dtype in images.dtypes.items() if dtype == "float64"]


def pair_means(results: Results) -> pd.DataFrame:
    """Metrics per variant and (prompt, seed) pair, averaged over the repeats that have them."""
    images = results.images[results.images["unit"].isin(finished(results)["unit"])]
    return images.groupby(["variant", "prompt_id", "seed"])[_metrics(images)].mean().reset_index()


def _alignment_difference(images: dict[str, pd.DataFrame], variant: str) -> Interval:
    if variant == BASELINE:
        return Interval(np.nan, np.nan, np.nan)
    difference = images[variant]["alignment"] - images[BASELINE]["alignment"]
    return pair_interval(difference, "alignment", difference=True)
