"""The columns that the analysis computes: what each means, and how it is shown.

They are not stored. Their values come from `sdbench.analysis`; a table, a page or a figure of
`sdbench.report` takes headings, units and formats from here.
"""

from sdbench.records.columns import MEGABYTES, PERCENT, PLAIN, SECONDS, Column, Format, real
from sdbench.records.metrics import SCALES
from sdbench.records.names import BASELINE


def _computed(unit: str, label: str, form: Format, meaning: str) -> Column:
    """A column that is missing where nothing was measured."""
    return real(unit, meaning, nullable=True, label=label, form=form)


SUMMARY = {
    "nfe": _computed(
        "rows/image",
        "NFE",
        PLAIN,
        "denoiser evaluations per image: two in a guided step, one in an unguided step.",
    ),
    "latency_s": _computed(
        "s",
        "time",
        SECONDS,
        "median wall time of one pipeline call; the heading says how many images it makes.",
    ),
    "saving": _computed(
        "1",
        "saving",
        PERCENT,
        f"share of the time of `{BASELINE}` that the variant saves; each call is compared with the "
        f"call of `{BASELINE}` timed next to it. If the interval includes 0, no saving is shown.",
    ),
    "denoise_saving": _computed("1", "loop", PERCENT, "the same in the denoising loop alone."),
    "ideal_saving": _computed(
        "1",
        "ideal",
        PERCENT,
        "the saving if time were proportional to NFE; none for an accelerator, whose evaluations "
        f"do not cost what those of `{BASELINE}` cost.",
    ),
    "predicted_saving": _computed(
        "1",
        "predicted",
        PERCENT,
        "the saving expected from the measured times of guided and unguided steps of the other "
        "variants; none for an accelerator.",
    ),
    "full_forwards": _computed(
        "calls",
        "full",
        PLAIN,
        "denoiser calls of a pipeline call that the accelerator ran in full.",
    ),
    "peak_bytes": _computed("bytes", "memory", MEGABYTES, "highest memory peak of a call."),
    "energy_j": _computed(
        "J/image",
        "energy",
        Format(".3g", "J"),
        "mean energy per image, of the whole GPU or of the processor's packages; idle power is in "
        "it.",
    ),
    "idle_w": _computed(
        "W", "idle", Format(".3g", "W"), "power of the same before the study's first call."
    ),
    "lpips": _computed(
        "1",
        "LPIPS",
        Format("z.3f"),
        f"mean perceived distance to the image that `{BASELINE}` makes of the same prompt and "
        f"seed; 0 is identical. The row `{BASELINE}` has the noise floor: a second run of it.",
    ),
    "lpips_median": _computed(
        "1",
        "median",
        Format("z.3f"),
        "LPIPS of the image in the middle. A few very different images can decide the mean, and "
        "not this.",
    ),
    "lpips_changed": _computed(
        "1",
        "changed",
        Format("z.0f", "%", 100),
        f"share of images with an LPIPS above {SCALES['lpips'].changed:g}: they tend to show "
        "something else.",
    ),
    "lpips_worst": _computed(
        "1",
        "worst",
        Format("z.3f"),
        "mean over videos of the LPIPS of the worst frame; LPIPS is the mean over all frames.",
    ),
    "flicker": _computed(
        "1",
        "flicker",
        Format("z.3f"),
        "mean LPIPS between neighbouring frames of a video; 0 is a still.",
    ),
    "flicker_difference": _computed(
        "1",
        "flicker change",
        Format("+z.3f"),
        f"flicker less that of `{BASELINE}`, pair by pair: above 0 frames jump more, below 0 less "
        "moves.",
    ),
    "alignment": _computed(
        "1",
        "alignment",
        Format("z.2f"),
        "share of the caption's attributes that the image shows.",
    ),
    "alignment_difference": _computed(
        "1",
        "change",
        Format("+z.2f"),
        f"alignment less that of `{BASELINE}`, pair by pair.",
    ),
}
"""Of `sdbench.analysis.tables.summarise`, in the order in which they are shown."""

FRONTIER = {
    "nfe": _computed("rows/image", "NFE", PLAIN, SUMMARY["nfe"].meaning),
    "denoise_saving": _computed(
        "1", "loop saved", Format(".1f", "%", 100), "share of the loop's time that is saved"
    ),
}
"""Of `sdbench.analysis.frontier.frontier`, next to its metrics."""
FRONTIER_METRIC = Format(".3f")

PLAN = {
    "nfe": _computed("rows/image", "NFE", Format("g"), SUMMARY["nfe"].meaning),
    "saving": _computed("1", "time saved", Format(".0%"), "share of the guided call's time"),
    "worse": _computed(
        "1", "worse than plan", Format("+.4f"), "mean difference of the metric, pair by pair"
    ),
    "plan_better": _computed(
        "1",
        "plan better in",
        Format(".0%"),
        "share of the pairs in which the plan is better, among those that differ",
    ),
}
"""Of `sdbench.analysis.plans.plan_table`, next to its metric."""
PAIRED_METRIC = Format(".4f")
"""A metric where variants are compared pair by pair, which shows smaller differences."""
PAIRED_SHARE = Format(".0%")
"""The share of changed images next to it."""

COST = {
    "ideal_saving": _computed("1", "ideal", Format(".1%"), SUMMARY["ideal_saving"].meaning),
    "predicted_denoise_saving": _computed(
        "1",
        "loop predicted",
        Format(".1%"),
        "saving of the loop to expect from steps of other variants",
    ),
    "denoise_saving": _computed("1", "loop measured", Format(".1%"), "saving of the loop"),
    "share_of_ideal": _computed("1", "of ideal", Format(".0%"), "measured over ideal, of the loop"),
    "predicted_saving": _computed("1", "call predicted", Format(".1%"), "the same of the call"),
    "saving": _computed("1", "call measured", Format(".1%"), "saving of the call"),
}
"""Of `sdbench.analysis.cost.saving_table`, in the order in which they are shown."""
STEP_COST = {
    "guided_s": _computed("s", "guided step", Format(".4g", "s"), "median time of a guided step"),
    "unguided_s": _computed("s", "unguided", Format(".4g", "s"), "the same of an unguided step"),
    "ratio": _computed("1", "R", Format(".3f"), "time of a guided step over an unguided one's"),
    "denoise_share": _computed("1", "loop", Format(".1%"), "share of the loop in a call"),
    "compile_s": _computed("s", "compiled in", Format(".0f", "s"), "time of the compiler"),
}
"""Of `sdbench.analysis.cost.cost_point`."""

MODULE = {
    "guided_s": _computed(
        "s",
        "guided",
        Format(",.1f", "ms", 1e3),
        "time in a guided step, without what watching took.",
    ),
    "share": _computed("1", "share", Format(".1f", "%", 100), "of the guided step."),
    "unguided_s": _computed("s", "unguided", Format(",.1f", "ms", 1e3), "in an unguided step."),
    "ratio": _computed(
        "1", "ratio", Format(".2f"), "guided over unguided: 2 where half of the rows take half."
    ),
    "flop": _computed("FLOP", "work", Format(".4g", "GFLOP", 1e-9), "of the guided step."),
    "moved_bytes": _computed(
        "bytes", "moved", Format(",.0f", "MB", 1e-6), "what its operations read and wrote."
    ),
    "intensity": _computed("FLOP/byte", "FLOP/byte", Format(".3g"), "work for each byte moved."),
    "mfu": _computed(
        "1", "peak", Format(".0f", "%", 100), "share of the FLOPs that a matrix product reaches."
    ),
}
"""Of `sdbench.analysis.modules.module_table`, in the order in which they are shown."""
LOOP = {
    "seconds": _computed("s", "time", Format(",.1f", "ms/step", 1e3), "of a mean step."),
    "flop_s": _computed("FLOP/s", "speed", Format(",.0f", "GFLOP/s", 1e-9), "work over time."),
    "mfu": MODULE["mfu"],
    "intensity": MODULE["intensity"],
}
"""Of `sdbench.analysis.modules.by_schedule`, in the order in which they are shown."""

_SHARE = Format("z.0f", "%", 100)
PERCEPTION = {
    "trials": _computed("1", "answers", PLAIN, "of all people who are not left out."),
    "share": _computed(
        "1", "right", _SHARE, "share of right answers, exact interval; who sees nothing has 50 %."
    ),
    "noticed": _computed(
        "1", "noticed", _SHARE, "share of trials in which it was seen, corrected for guessing."
    ),
    "dprime": _computed(
        "1",
        "d'",
        Format("z.2f"),
        "distance between the images in units of the eye's noise; 1 is seen now and then, 3 nearly "
        "always.",
    ),
    "mixed": _computed(
        "1",
        "typical",
        _SHARE,
        "share of right answers of the typical person on a typical pair, by a mixed logistic "
        "model; it speaks of other people and other images, too.",
    ),
    "detectable": _computed(
        "1", "found from", _SHARE, "smallest true share that so many answers find, with 80 % power."
    ),
}
"""Of `sdbench.analysis.perception.detection.detections`, in the order in which they are shown."""
THRESHOLD = Format("z.4f")
"""A distance that half notice."""
SCORE = Format("+z.2f")
"""A Bradley-Terry score."""

COMPARISON = {
    "baseline": _computed("that of the figure", "baseline", Format(".6g"), "the baseline's figure"),
    "current": _computed("that of the figure", "current", Format(".6g"), "the current run's"),
    "change": _computed("that of the figure", "change", Format("+.4g"), "current less baseline"),
}
"""Of `sdbench.analysis.regression.compare`."""
RELATIVE_CHANGE = Format("+.2f", "%", 100)
"""The change of a time or of memory, which is a share of the baseline's."""
