"""The tables that are stored: their columns, their keys, and which of them make a study.

One dtype per kind, whether or not a column may be missing: `string`, `Int64` and `boolean` (missing
is `pd.NA`) and `float64` (missing is `NaN`), so tables concatenate without a cast.
"""

from sdbench.records.columns import (
    BRANCH,
    GIGABYTES,
    METRICS,
    MILLISECONDS,
    PAIR,
    VIDEO,
    Column,
    count,
    flag,
    real,
    seconds,
    size,
    text,
)
from sdbench.records.names import ANSWERS, STILL
from sdbench.records.stored_experiments import DRAW, EXPERIMENTS

PHASES = ("warmup", "measured", "untimed", "companion")
"""Of calls."""
TIMINGS = ("lockstep", "calls")
"""How calls are timed: step by step in turn, or one after another."""
COUNTERS = ("nvml", "rapl")
"""Of energy."""
# What a call measures is missing where the call failed, so those columns are nullable.
TABLES: dict[str, dict[str, Column]] = {
    "runs": {
        "study": text("name of the study"),
        "unit": text("identifier of the pipeline call"),
        "model": text("model that ran"),
        "variant": text("way of running the pipeline; the baseline is `cfg`"),
        "num_steps": count("steps", "denoising steps asked of the pipeline, by number or by list"),
        "first_timestep": real("1", "timestep of the call's first step", nullable=True),
        "first_sigma": real(
            "1", "noise-to-signal ratio at which the call begins", nullable=True, minimum=0
        ),
        "guidance_scale": real("1", "guidance scale w of u + w (c - u)"),
        "pipeline_scale": real(
            "1",
            "number that the pipeline was given for that scale: most take w, some w - 1",
            nullable=True,
        ),
        "batch": count("images", "images made by the call"),
        "height": count("px", "image height", nullable=True),
        "width": count("px", "image width", nullable=True),
        "dtype": text("number format of the denoiser's weights"),
        "scheduler": text("class of the scheduler"),
        "repeat": count(
            "1", "index of the repeat; calls of one repeat are compared with each other"
        ),
        "phase": text(
            "warm-ups are kept and never averaged; untimed calls count for their images alone; "
            "a companion is a call of the baseline next to which another variant's was timed",
            choices=PHASES,
        ),
        "latency_s": seconds("wall time of the call", nullable=True),
        "text_s": seconds(
            "time before the first step: text encoding and preparation", nullable=True
        ),
        "denoise_s": seconds("time of the denoising loop", nullable=True),
        "decode_s": seconds("time after the last step: decoding to images", nullable=True),
        "nfe": real("rows/image", "denoiser rows evaluated per image", nullable=True, minimum=0),
        "forwards": count("calls", "denoiser calls", nullable=True),
        "rows": count("rows", "denoiser rows evaluated", nullable=True),
        "flop": count(
            "flop",
            "work of the denoiser, 2 per multiply-add; missing where an operation has no formula "
            "(quantised layers: `uncounted` in environment.json names it), and in measured calls "
            "that are `accelerated`, whose warm-up is counted",
            nullable=True,
        ),
        "full_forwards": count(
            "calls",
            "denoiser calls that an accelerator ran in full, counted in its warm-up",
            nullable=True,
        ),
        "accelerated": flag(
            "whether a row costs other work than a row of the baseline: an accelerator ran, "
            "weights were in another number format, or a student's layers took turns next to them",
            nullable=True,
        ),
        "peak_bytes": size("peak of allocated device memory", nullable=True),
        "reserved_bytes": size("peak of memory that the allocator reserved", nullable=True),
        "rss_peak_bytes": size("peak resident memory of the process", nullable=True),
        "copied_bytes": size(
            "weights that the call held in addition to the model's, in lockstep: a student's, or "
            "those in another number format",
            nullable=True,
        ),
        "weights_bytes": size(
            "denoiser's weights in the number formats in which they ran, of a variant with another "
            "one",
            nullable=True,
        ),
        "compile_s": seconds(
            "time of compiling before the call; it is not part of the call", nullable=True
        ),
        "energy_j": real(
            "J",
            "energy of the call: of the whole GPU, or of the processor's packages without their "
            "memory, idle power included; missing where no counter can be read, and for a call too "
            "short for it",
            nullable=True,
            minimum=0,
        ),
        "idle_w": real(
            "W", "power of the same before the study's first call", nullable=True, minimum=0
        ),
        "energy_source": text(
            "counter of that energy: the GPU's own, or RAPL's", nullable=True, choices=COUNTERS
        ),
        "foreign_load": real(
            "cores",
            "processors that others kept busy during the call",
            nullable=True,
            minimum=0,
        ),
        "foreign_processes": count(
            "processes", "other processes that computed on the GPU", nullable=True
        ),
        "throttled": flag(
            "whether the processor or GPU was held back during the call", nullable=True
        ),
        "exclusive": flag("whether no other call of the run shared the device", nullable=True),
        "timing": text(
            "how the call was timed: step by step in turn with others, or by itself; missing if "
            "it was not timed",
            nullable=True,
            choices=TIMINGS,
        ),
        "beside": text(
            "unit of the baseline's call next to which this one was timed", nullable=True
        ),
        "disturbed": flag(
            "whether the repeat was too disturbed for its times; judged by the baseline's steps "
            "and the load of others, never by the variant's own time",
            nullable=True,
        ),
        "environment": text("key of the environment in environment.json"),
        "sha256": text("hash of what the call returned: 8-bit images, or latents", nullable=True),
        "status": text(
            "whether the call finished, or why not",
            choices=("ok", "failed", "unsupported"),
        ),
        "message": text(
            "why the call failed or is not supported, or a note on its figures",
            nullable=True,
        ),
    },
    "steps": {
        "unit": text("identifier of the pipeline call"),
        "variant": text("way of running the pipeline"),
        "repeat": count("1", "index of the repeat"),
        "phase": text("phase of the call", choices=PHASES),
        "step": count("1", "index of the iteration in the call"),
        "timestep": real("1", "timestep given to the scheduler"),
        "sigma": real("1", "noise-to-signal ratio at the step's start", nullable=True, minimum=0),
        "guided": flag("whether both predictions were evaluated, as it ran"),
        "rows": count("rows", "denoiser rows evaluated in the step"),
        "latency_s": seconds("wall time of the step", form=MILLISECONDS),
        "denoiser_s": seconds("time inside the denoiser"),
        "scheduler_s": seconds("time inside scheduler.step"),
        "peak_bytes": size("peak of allocated device memory during the step", nullable=True),
        "energy_j": real(
            "J",
            "energy from the end of the step before; only where a step lasts 100 updates of the "
            "counter, which no reading within a GPU's call tells",
            nullable=True,
            minimum=0,
        ),
        "guidance_cosine": real(
            "1", "cosine of conditional and unconditional prediction of x0", nullable=True
        ),
        "guidance_norm": real(
            "1", "norm of the difference of the two predictions", nullable=True, minimum=0
        ),
    },
    "images": {
        "unit": text("identifier of the pipeline call"),
        "variant": text("way of running the pipeline"),
        **PAIR,
        "draw": DRAW,
        "path": text("image file, relative to the study folder", nullable=True),
        "sha256": text("hash of the pixels", nullable=True),
        "flagged": flag(
            "whether a safety checker replaced it by a placeholder, which has no scores",
            nullable=True,
        ),
        "reference_variant": text(
            "variant whose image of the same pair is the reference", nullable=True
        ),
        **METRICS,
    },
    "sensitivity": {
        "unit": text("identifier of the pipeline call"),
        "model": text("model that ran"),
        "scheduler": text("class of the scheduler"),
        "num_steps": count("steps", "denoising steps asked of the pipeline"),
        "guidance_scale": real("1", "guidance scale w asked of the pipeline"),
        **PAIR,
        **BRANCH,
        "switch": text(
            "what a 0 of the mask switches: the number format of the step; missing where it "
            "switches guidance off",
            nullable=True,
        ),
        "nfe": count("rows", "denoiser rows of a call under this mask alone"),
        "rows": count(
            "rows", "denoiser rows evaluated for it in the sweep, where masks share rows"
        ),
        **METRICS,
    },
    "growth": {
        "unit": text("identifier of the pipeline call"),
        **PAIR,
        **BRANCH,
        "step": count("1", "steps that have run"),
        "distance": real(
            "1", "norm of the latents' difference to the baseline's, over the baseline's", minimum=0
        ),
    },
    "known": {
        "metric": text("metric that judged"),
        "answer": text("image judged instead of the baseline's", choices=(*ANSWERS, STILL)),
        **PAIR,
        "value": real("1", "value for that image, in the metric's own unit", nullable=True),
        "baseline": real(
            "1",
            "value of the metric for the baseline's own image; if the metric compares with that "
            "image, for the same image with every value moved by one of 255 levels",
            nullable=True,
        ),
        "higher_is_better": flag("whether a higher value of the metric is better"),
    },
    "history": {
        "accepted": text("when the figures became the baseline, UTC"),
        "reason": text("why they were accepted"),
        "forced": text(
            "what spoke against the run, if it was accepted with `--force`", nullable=True
        ),
        "commit": text("commit of the code that was measured", nullable=True),
        "environment": text("key of the environment"),
        "variant": text("way of running the pipeline"),
        "figure": text("what was measured"),
        "value": real("that of the figure", "value of the figure, as `sdbench compare` prints it"),
    },
    "ledger": {
        "unit": text("identifier of the run"),
        "method": text("what was run: a way of training or of inference"),
        "checkpoint_gradients": flag("whether activations are computed again in the backward pass"),
        "rows": count("rows", "images of a step"),
        "part": text("what the memory is held for"),
        "at_peak_bytes": size("held by the part at the peak; the parts sum to it", form=GIGABYTES),
        "most_bytes": size("most bytes that the part held at one time"),
        "predicted_bytes": size("the same by arithmetic, where there is a formula", nullable=True),
        "step_s": seconds("wall time of one step, without tracing"),
    },
    **EXPERIMENTS,
}
YOUNGER = {
    "runs": (
        "accelerated",
        "full_forwards",
        "pipeline_scale",
        "foreign_load",
        "foreign_processes",
        "throttled",
        "exclusive",
        "timing",
        "beside",
        "disturbed",
        "copied_bytes",
        "weights_bytes",
        "first_sigma",
        "first_timestep",
        "sha256",
        "energy_j",
        "idle_w",
        "energy_source",
    ),
    "steps": ("energy_j",),
    "images": ("flagged", "draw"),
    "sensitivity": ("switch",),
    "modules": ("watch_s",),
    "judged": ("draw",),
    "history": ("forced",),
}
"""Columns that tables stored before them lack."""
STUDY = ("runs", "steps", "images")
"""The tables of a study; every unit has one row in the first."""
SWEEP = ("sensitivity", "growth")
"""The tables of a sensitivity sweep; every unit has rows in the first."""
PLANS = ("judged",)
"""The table of planned schedules."""
SPENDING = ("spending",)
"""The table of budgets and the ways to spend them."""
TRAINING = ("training",)
"""The table of a distillation."""
HISTORY = ("history",)
"""The table of a baseline's past."""
MODULES = ("modules",)
"""The table of where a step's time and work go."""
LEDGER = ("ledger",)
"""The table of what training and inference hold in memory."""
WITH_METRICS = ("images", "sensitivity", "judged", "spending", "answers")
"""Tables that may carry further float64 columns, one per registered metric."""
FURTHER_METRIC = real("1", "", nullable=True)
OF_VIDEOS: dict[str, dict[str, Column]] = {
    "images": {
        "frames": count("frames", "of the video, of which `path` is the file", nullable=True),
        **VIDEO,
    },
    "sensitivity": VIDEO,
    "judged": VIDEO,
    "spending": VIDEO,
    "answers": {},
}
"""Columns that a table has where its rows are of videos, and else has not."""

KEYS = {
    "runs": ["unit"],
    "steps": ["unit", "step"],
    "images": ["unit", "prompt_id", "seed"],
    "sensitivity": ["prompt_id", "seed", "mask"],
    "growth": ["prompt_id", "seed", "mask", "step"],
    "judged": ["unit", "variant", "prompt_id", "seed", "draw"],
    "spending": ["unit", "variant", "prompt_id", "seed"],
    "modules": ["step", "part", "block", "kind"],
    "training": ["step"],
    "distances": ["variant", "features", "distance"],
    "known": ["metric", "answer", "prompt_id", "seed"],
    "history": ["accepted", "variant", "figure"],
    "ledger": ["unit", "part"],
    "answers": ["page", "person", "trial"],
}
