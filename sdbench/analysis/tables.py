"""What a study's tables say, by variant and paired against the baseline, or by variant and step.

Which rows belong together is decided here; the intervals are in `stats.py`, units and rounding in
`sdbench.report`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from sdbench.analysis.calls import COUNTED, finished, steps_of, timed
from sdbench.analysis.draws import less
from sdbench.analysis.energy import ENERGY, with_energy
from sdbench.analysis.known import known_columns
from sdbench.analysis.pairs import metric_columns, pair_interval
from sdbench.analysis.predicted import call_counts, has_rows_of_its_own, predictions, share_saved
from sdbench.analysis.repeats import complete_repeats, ratios
from sdbench.analysis.stability import WATCHED, disturbance
from sdbench.analysis.stats import Interval, spread
from sdbench.records.call_times import TIMES
from sdbench.records.columns import FLICKER
from sdbench.records.names import BASELINE
from sdbench.records.schema import columns
from sdbench.records.stopping import level
from sdbench.records.store import Results, read

PAIRS = {
    "runs": ("phase", "status"),
    "images": (
        "variant",
        "draw",
        *(name for name, column in columns("images").items() if column.dtype == "float64"),
    ),
}
"""Columns that `pair_means` and `image_means` need."""
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
        "full_forwards",
        "peak_bytes",
        *(*ENERGY, *COUNTED, *WATCHED["runs"]),
    ),
    "steps": ("guided", "rows", *WATCHED["steps"]),
    "images": PAIRS["images"],
}
"""Columns that `summarise` needs."""


def summarise(results: Results | str | Path) -> pd.DataFrame:
    """One row per variant, the baseline `cfg` first, then as they first ran.

    Times are of measured calls that finished and had the device to themselves. A repeat counts for
    a variant when all its batches did; each call's time is taken over that of the baseline's call
    beside which it was timed. Disturbed repeats count only where fewer than 6 others are left.
    Metrics are averaged over (prompt, seed) pairs, with intervals clustered by prompt. A few images
    that became others can decide a mean, so its interval needs many prompts (`pairs.pair_interval`
    says how many), and the median and the share of changed images stand beside it. The baseline's
    own metrics compare its later repeats with its first: the noise floor.

    Args:
        results: of a study, or the study's folder: then no more is read than is needed here, which
            lets the tables have millions of rows.

    Returns:
        `variant`, `nfe`, `steps` (of a call), `repeats` (paired with the baseline; in lockstep
        rounds, of one batch each), `pairs` (with images), `failed` (calls), `unsupported` (why the
        variant cannot run on this pipeline; empty where it can), `disturbance` (what disturbed the
        run, the same in every row; empty where nothing did), `batch` (images of a call),
        `latency_s` (median per call of so many), `saving` (share of the baseline's time),
        `denoise_saving` (the same of the denoising loop), `ideal_saving` (share of the baseline's
        evaluations not made), `predicted_saving` and `predicted_denoise_saving` (of call and loop,
        to expect from what steps of other variants took, as `predictions` says), `full_forwards`
        where an accelerator ran (denoiser calls that left no work out), `peak_bytes`, where it
        could be read `energy_j` (per image) with `idle_w`, every metric (its mean) with its
        `_median` and, where it has a threshold, the share of images that are `_changed`; and
        `alignment_difference` to the baseline. Of videos a metric is the mean over
        the frames of each, and that of the worst frame stands in `_worst`; `flicker` has a
        `flicker_difference`, too, and `output` is "video" (of audio "audio"; of images there is no
        such column). `reference` names the variant that images are compared with, where that is not
        the baseline. Where the study has known answers, every metric also has `_likes` (bad ones
        that it does not put clearly below the baseline) and `_other_seed` (its mean for another
        seed of the same prompt). Measured and predicted savings, metrics and differences have `_lo`
        and `_hi` behind them, the 95 % interval. What was not measured is NaN; so are the
        baseline's intervals against itself, and what is ideal and predicted where a row is other
        work than the baseline's.

    Raises:
        ValueError: the study has no `cfg` calls; as `read` says.
    """
    if not isinstance(results, Results):
        results = read(results, columns=SUMMARY)
    order = _variants(results)

    # What is one number per variant, and what is paired first.
    cost = _costs(results).reindex(order)
    predicted = predictions(results)
    saved = _savings(results, order)
    images = _by_variant(pair_means(results), order, ["prompt_id", "seed"])
    singles = _singles(results, order, images)

    has_accelerators = bool(cost["full_forwards"].notna().any())
    known = known_columns(results.known) | _output(results) | _reference(results)
    disturbed = disturbance(results)
    rows = []
    for variant in order:
        row = {
            "variant": variant,
            "nfe": cost["nfe"][variant],
            "steps": cost["steps"][variant],
            "repeats": saved[variant].repeats,
            "pairs": len(images[variant]),
            "failed": int(cost["failed"][variant]),
            "unsupported": _unsupported(results.runs, variant),
            "disturbance": disturbed,
            "batch": cost["batch"][variant],
            "latency_s": cost["latency_s"][variant],
            **spread("saving", saved[variant].call),
            **spread("denoise_saving", saved[variant].loop),
            "ideal_saving": cost["ideal_saving"][variant],
            **spread("predicted_saving", predicted[variant].call),
            **spread("predicted_denoise_saving", predicted[variant].loop),
            "full_forwards": cost["full_forwards"][variant],
            "peak_bytes": cost["peak_bytes"][variant],
        }

        # Some have no reference to differ from, so their change is a figure, too.
        for metric in _metrics(results.images):
            values = images[variant][metric]
            row |= metric_columns(values, metric, images=singles[variant][metric])
        row |= _changes(images, singles, variant)
        rows.append(row | known)
    table = with_energy(pd.DataFrame(rows), results)
    return table if has_accelerators else table.drop(columns="full_forwards")


def unguided_share(results: Results) -> "pd.Series[float]":
    """Share of the steps that ran unguided, by variant, in measured calls that finished.

    A step in which some images were guided counts by its rows, as `call_counts` says.
    """
    counts = call_counts(results)
    return 1 - counts["guided"] / counts["steps"]


def step_profile(results: Results) -> pd.DataFrame:
    """The course of every variant over its steps, from measured calls that finished.

    Returns:
        One row per variant and step: `variant`, `step`, `guided` (share of the calls), `latency_s`
        (median), `guidance_cosine` (median) with `guidance_cosine_q25` and `guidance_cosine_q75`
        (NaN on unguided steps), `disturbance` as in `summarise`. Of a step that is guided in some
        calls only, as where a variant has several draws, the time is the mean of both medians by
        the calls of each kind.
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
    return (
        profile.reset_index().astype({"variant": "string"}).assign(disturbance=disturbance(results))
    )


def _expected_s(steps: pd.DataFrame) -> "pd.Series[float]":
    """Time of every variant's step: the median, or the mean of those of guided and unguided calls.

    A single median of both kinds would be the one or the other's by a call more or less.
    """
    kinds = steps.groupby(["variant", "step", "guided"], observed=True)["latency_s"]
    calls = kinds.count()
    both = ["variant", "step"]
    total = (calls * kinds.median()).groupby(both, observed=True).sum(min_count=1)
    return total / calls.groupby(both, observed=True).sum()


def _variants(results: Results) -> list[str]:
    variants = list(results.runs["variant"].unique())
    if BASELINE not in variants:
        there = ", ".join(variants)
        raise ValueError(
            f"{results.folder}: no runs of the baseline {BASELINE!r}; there are {there}"
        )
    return list(dict.fromkeys([BASELINE, *variants]))


def _costs(results: Results) -> pd.DataFrame:
    """What is one number per variant: of work, time and memory."""
    runs = finished(results)
    nfe = runs.groupby("variant")["nfe"].mean()
    counts = call_counts(results)

    # The time of a call goes with its images, so the last batch of a study may not count.
    times = timed(results)
    batch = times.groupby("variant")["batch"].max()
    whole = times[times["batch"] == times["variant"].map(batch)]
    return pd.DataFrame(
        {
            "nfe": nfe,
            "steps": counts["steps"],
            "failed": _failed(results.runs).groupby(results.runs["variant"]).sum(),
            "batch": batch,
            "latency_s": whole.groupby("variant")["latency_s"].median(),
            "ideal_saving": (1 - nfe / nfe.reindex([BASELINE]).item()).mask(
                has_rows_of_its_own(results)
            ),
            "full_forwards": results.runs.groupby("variant")["full_forwards"]
            .mean()
            .astype("float64"),
            "peak_bytes": _peak_bytes(results.runs),
        }
    )


def _failed(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Which calls failed, without those that are there to be compared with."""
    return (runs["status"] == "failed") & (runs["phase"] != "companion")


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


class Saved(NamedTuple):
    """What was measured of a variant's time.

    Attributes:
        repeats: that have times of it and of the baseline.
        call: share of the time of the baseline's call that is saved.
        loop: share of the time of its denoising loop.
    """

    repeats: int
    call: Interval
    loop: Interval


def _savings(results: Results, order: list[str]) -> dict[str, Saved]:
    """The measured savings of every variant."""
    repeats = complete_repeats(results)
    shares = [ratios(repeats, column).reindex(columns=order) for column in TIMES]
    # Where repeats end by the width of intervals, these must be wider to cover what they state.
    at = level(results.study.get("repeats"))

    found = {}
    for variant in order:
        own = [of_column[variant].dropna().astype(float) for of_column in shares]
        intervals = [share_saved(of_column, level=at) for of_column in own]
        if variant == BASELINE:
            intervals = [Interval(0.0, np.nan, np.nan)] * len(TIMES)
        found[variant] = Saved(len(own[0]), *intervals)
    return found


def _metrics(images: pd.DataFrame) -> list[str]:
    return [str(name) for name, dtype in images.dtypes.items() if dtype == "float64"]


def pair_means(results: Results) -> pd.DataFrame:
    """Metrics per variant and (prompt, seed) pair, averaged over the repeats that have them."""
    return _means(results, ["variant", "prompt_id", "seed"])


def image_means(results: Results) -> pd.DataFrame:
    """The same per variant, pair and draw, of variants that make several images of a pair."""
    return _means(results, ["variant", "prompt_id", "seed", "draw"])


def _means(results: Results, keys: list[str]) -> pd.DataFrame:
    images = results.images[results.images["unit"].isin(finished(results)["unit"])]
    return images.groupby(keys, dropna=False)[_metrics(images)].mean().reset_index()


def _by_variant(means: pd.DataFrame, order: list[str], index: list[str]) -> dict[str, pd.DataFrame]:
    indexed = means.set_index(index)
    return {variant: indexed[indexed["variant"] == variant] for variant in order}


def _singles(
    results: Results, order: list[str], images: dict[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Metrics of every image, which are those of the pairs unless a pair has several images."""
    if not results.images["draw"].notna().any():
        return images
    return _by_variant(image_means(results), order, ["prompt_id", "seed", "draw"])


def _output(results: Results) -> dict[str, str]:
    """What the calls made, where that is no image."""
    output = str(results.study.get("output"))
    return {"output": output} if output in ("video", "audio") else {}


def _reference(results: Results) -> dict[str, str]:
    """With whose images those of others are compared, where that is not the baseline."""
    reference = str(results.study.get("reference", BASELINE))
    return {} if reference == BASELINE else {"reference": reference}


def _changes(
    images: dict[str, pd.DataFrame], singles: dict[str, pd.DataFrame], variant: str
) -> dict[str, float]:
    """Change of what has no reference, given the means of pairs, and of single images."""
    row: dict[str, float] = {}
    for metric in ("alignment", FLICKER):
        if metric not in images[variant]:
            continue
        change = Interval(np.nan, np.nan, np.nan)
        if variant != BASELINE:
            of_baseline = images[BASELINE][metric]
            difference = images[variant][metric] - of_baseline
            by_image = less(singles[variant][metric], of_baseline)
            change = pair_interval(difference, metric, difference=True, images=by_image)
        row |= spread(f"{metric}_difference", change)
    return row
