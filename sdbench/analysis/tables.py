"""What a study's tables say: one row per variant, paired against the baseline; one row per variant and step.

Which rows belong together is decided here; the intervals are in `stats.py`, units and rounding in `sdbench.report`.
"""

import numpy as np
import pandas as pd

from sdbench.analysis.stats import Interval, cluster_bootstrap, ratio_interval
from sdbench.records.store import Results

BASELINE = "cfg"


def summarise(results: Results) -> pd.DataFrame:
    """One row per variant, the baseline `cfg` first, then as they first ran.

    Times are of measured calls that finished and had the device to themselves. A repeat counts for a variant when all
    its batches did; it is paired with the baseline's same repeat. Metrics are averaged over (prompt, seed) pairs, with
    intervals clustered by prompt. The baseline's own metrics compare its later repeats with its first: the noise floor.

    Returns:
        `variant`, `nfe`, `repeats` (paired with the baseline), `pairs` (with images), `failed` (calls), `unsupported`
        (why the variant cannot run on this pipeline; empty where it can), `latency_s`
        (median per call), `saving` (share of the baseline's time), `denoise_saving` (the same of the denoising loop),
        `ideal_saving` (share of the baseline's evaluations not made), `predicted_saving` (what the steps' own times
        let expect), `peak_bytes`, every metric, and `alignment_difference` to the baseline. `saving`,
        `denoise_saving`, metrics and difference have `_lo` and `_hi` behind them, the 95 % interval. What was not
        measured is NaN; so are the baseline's intervals against itself.

    Raises:
        ValueError: the study has no `cfg` calls.
    """
    order = _variants(results)
    runs = _finished(results)
    repeats = complete_repeats(results.runs)
    pairs = pair_means(results)
    cost = pd.DataFrame(
        {
            "nfe": runs.groupby("variant")["nfe"].mean(),
            "failed": (results.runs["status"] == "failed").groupby(results.runs["variant"]).sum(),
            "latency_s": runs.groupby("variant")["latency_s"].median(),
            "predicted_saving": _predicted_saving(results),
            "peak_bytes": _peak_bytes(results.runs),
        }
    ).reindex(order)
    rows = []
    for variant in order:
        images = pairs[pairs["variant"] == variant].set_index(["prompt_id", "seed"])
        row = {
            "variant": variant,
            "nfe": cost["nfe"][variant],
            "repeats": len(paired(repeats, "latency_s", variant)),
            "pairs": len(images),
            "failed": int(cost["failed"][variant]),
            "unsupported": _unsupported(results.runs, variant),
            "latency_s": cost["latency_s"][variant],
            **spread("saving", _saving(repeats, "latency_s", variant)),
            **spread("denoise_saving", _saving(repeats, "denoise_s", variant)),
            "ideal_saving": 1 - cost["nfe"][variant] / cost["nfe"][BASELINE],
            "predicted_saving": cost["predicted_saving"][variant],
            "peak_bytes": cost["peak_bytes"][variant],
        }
        for metric in _metrics(results.images):
            row |= spread(metric, pair_interval(images[metric]))
        rows.append(row | spread("alignment_difference", _alignment_difference(pairs, variant)))
    return pd.DataFrame(rows)


def guidance_ratio(results: Results) -> float:
    """R, the time of a guided step over that of an unguided one: the ratio of medians per repeat, then their median.

    Where no call holds both kinds of step, all calls count. NaN without an unguided step.
    """
    medians = step_medians(results)
    if medians.empty:
        medians = _step_medians(_finished_steps(results))
    return float((medians[True] / medians[False]).median())


def step_medians(results: Results) -> pd.DataFrame:
    """Median seconds of a guided (column True) and of an unguided step (column False), one row per repeat.

    Steps come from calls that hold both kinds, so that nothing but guidance differs between them (an adapter's
    unguided steps cost more) and a slow machine slows both; not from those of an accelerator, whose steps differ among
    themselves, nor are steps in which only some images were guided. No row where no call is left.
    """
    steps = _finished_steps(results)
    runs = _finished(results).set_index("unit")
    counted = runs["flop"].notna()
    plain = counted if counted.any() else ~counted  # an accelerator's work is counted in its warm-up alone
    whole = steps["rows"] % steps["unit"].map(runs["batch"]) == 0
    steps = steps[whole & steps["unit"].map(plain)]
    return _step_medians(steps[steps.groupby("unit")["guided"].transform("nunique") == 2])


def denoise_share(results: Results) -> float:
    """Share of the denoising loop in a call of the baseline: the median over its measured calls that finished."""
    runs = _finished(results)
    return float((runs["denoise_s"] / runs["latency_s"])[runs["variant"] == BASELINE].median())


def unguided_share(results: Results) -> "pd.Series[float]":
    """Share of the steps that ran unguided, by variant, in measured calls that finished."""
    return 1 - _finished_steps(results).groupby("variant")["guided"].mean()


def step_profile(results: Results) -> pd.DataFrame:
    """The course of every variant over its steps, from measured calls that finished.

    Returns:
        One row per variant and step: `variant`, `step`, `guided` (in at least half of the calls), `latency_s` (median),
        `guidance_cosine` (median) with `guidance_cosine_q25` and `guidance_cosine_q75` (NaN on unguided steps).
    """
    steps = _finished_steps(results)
    groups = steps.groupby(["variant", "step"])
    cosine = groups["guidance_cosine"]
    profile = pd.DataFrame(
        {
            "guided": groups["guided"].mean() >= 0.5,
            "latency_s": groups["latency_s"].median(),
            "guidance_cosine": cosine.median(),
            "guidance_cosine_q25": cosine.quantile(0.25),
            "guidance_cosine_q75": cosine.quantile(0.75),
        }
    )
    ran = [variant for variant in _variants(results) if variant in set(steps["variant"])]
    return profile.reindex(ran, level="variant").reset_index()


def _step_medians(steps: pd.DataFrame) -> pd.DataFrame:
    medians = steps.pivot_table("latency_s", index="repeat", columns="guided", aggfunc="median")
    return medians.reindex(columns=[True, False])


def _variants(results: Results) -> list[str]:
    variants = list(results.runs["variant"].unique())
    if BASELINE not in variants:
        raise ValueError(f"{results.folder}: no runs of the baseline {BASELINE!r}; there are {', '.join(variants)}")
    return list(dict.fromkeys([BASELINE, *variants]))


def _unsupported(runs: pd.DataFrame, variant: str) -> str:
    reasons = runs.loc[(runs["variant"] == variant) & (runs["status"] == "unsupported"), "message"]
    return "" if reasons.empty else str(reasons.iloc[0])


def _finished(results: Results) -> pd.DataFrame:
    """Measured calls that finished; times are missing where another call ran beside one."""
    runs = results.runs
    runs = runs[(runs["phase"] == "measured") & (runs["status"] == "ok")]
    return runs.assign(**{name: runs[name].mask(_beside(runs)) for name in ("latency_s", "denoise_s")})


def _beside(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Whether other calls ran beside a call on its device; a table that does not say so is of calls in turn."""
    return ~runs["exclusive"].fillna(True).astype(bool)


def _peak_bytes(runs: pd.DataFrame) -> "pd.Series[float]":
    """Highest peak per variant over its measured calls; on the CPU only the untimed warm-up traces the allocator."""
    done = runs[runs["status"] == "ok"].astype({"peak_bytes": "float64"})
    by_phase = done.pivot_table("peak_bytes", index="variant", columns="phase", aggfunc="max", dropna=False)
    by_phase = by_phase.reindex(columns=["measured", "warmup"])
    return by_phase["measured"].fillna(by_phase["warmup"])


def _finished_steps(results: Results) -> pd.DataFrame:
    runs = _finished(results)
    steps = results.steps[results.steps["unit"].isin(runs["unit"])].astype({"guided": bool})
    beside = steps["unit"].isin(runs.loc[_beside(runs), "unit"])
    return steps.assign(latency_s=steps["latency_s"].mask(beside))


def complete_repeats(runs: pd.DataFrame) -> pd.DataFrame:
    """Time per (repeat, variant), summed over batches, where every batch of the study ran alone and finished."""
    measured = runs[runs["phase"] == "measured"]
    measured = measured.assign(failed=(measured["status"] != "ok") | _beside(measured))
    totals = measured.groupby(["repeat", "variant"])[["latency_s", "denoise_s"]].sum(min_count=1)
    groups = measured.groupby(["repeat", "variant"])
    calls, images = groups.size(), groups["batch"].sum()
    complete: pd.Series[bool] = (calls == calls.max()) & (images == images.max()) & ~groups["failed"].any()
    return totals[complete]


def paired(repeats: pd.DataFrame, column: str, variant: str) -> pd.DataFrame:
    """Times of a variant and of the baseline in the repeats that have both, one column each."""
    times = repeats.pivot_table(column, index="repeat", columns="variant")
    return times.reindex(columns=list(dict.fromkeys([variant, BASELINE]))).dropna()


def _saving(repeats: pd.DataFrame, column: str, variant: str) -> Interval:
    if variant == BASELINE:
        return Interval(0.0, np.nan, np.nan)
    times = paired(repeats, column, variant)
    ratio = ratio_interval(times[variant], times[BASELINE])
    return Interval(1 - ratio.estimate, 1 - ratio.hi, 1 - ratio.lo)


def _predicted_saving(results: Results) -> "pd.Series[float]":
    """Saving per variant if guided and unguided steps cost what they cost on the whole in this study.

    `denoise_share * (1 - (guided * R + unguided) / (guided_cfg * R))`, which for unguided steps within the baseline's
    step count is `fraction * denoise_share * (1 - 1 / R)`.
    """
    ratio = guidance_ratio(results)
    per_call = _finished_steps(results).groupby(["variant", "unit"])["guided"].agg(["sum", "size"])
    counts = per_call.groupby("variant").mean()
    guided, unguided = counts["sum"], counts["size"] - counts["sum"]
    full = guided.reindex([BASELINE]).item() * ratio
    saving: pd.Series[float] = denoise_share(results) * (1 - (guided * ratio + unguided) / full)
    return saving


def _metrics(images: pd.DataFrame) -> list[str]:
    return [str(name) for name, dtype in images.dtypes.items() if dtype == "float64"]


def pair_means(results: Results) -> pd.DataFrame:
    """Metrics per variant and (prompt, seed) pair, averaged over the repeats that have them."""
    images = results.images[results.images["unit"].isin(_finished(results)["unit"])]
    return images.groupby(["variant", "prompt_id", "seed"])[_metrics(images)].mean().reset_index()


def _alignment_difference(pairs: pd.DataFrame, variant: str) -> Interval:
    alignment = pairs.set_index(["variant", "prompt_id", "seed"])["alignment"]
    if variant == BASELINE or not {variant, BASELINE} <= set(pairs["variant"]):
        return Interval(np.nan, np.nan, np.nan)
    return pair_interval(alignment.loc[variant] - alignment.loc[BASELINE])


def pair_interval(values: "pd.Series[float]") -> Interval:
    """Mean over (prompt, seed) pairs, which are the index, with the interval clustered by prompt."""
    known = values.dropna()
    return cluster_bootstrap(known, known.index.get_level_values("prompt_id").astype(str))


def spread(name: str, interval: Interval) -> dict[str, float]:
    """An interval as the three columns of a table."""
    return {name: interval.estimate, f"{name}_lo": interval.lo, f"{name}_hi": interval.hi}
