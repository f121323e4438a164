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
    Format,
    count,
    flag,
    real,
    seconds,
    size,
    text,
)
from sdbench.records.names import ANSWERS, BASELINE, STILL

PHASES = ("warmup", "measured", "untimed", "companion")
"""Of calls."""
TIMINGS = ("lockstep", "calls")
"""How calls are timed: step by step in turn, or one after another."""
DRAW = count(
    "1",
    "number of the draw, of a variant that stands for several (`random:50%@0..7`)",
    nullable=True,
)

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
            "number by which the pipeline was asked for that scale: most take w, some w - 1",
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
            "warm-ups are kept and never averaged; of untimed calls the images count, no times; "
            "a companion is a call of the baseline beside which another variant's was timed",
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
            "denoiser calls in which an accelerator left no work out, counted in its warm-up",
            nullable=True,
        ),
        "accelerated": flag(
            "whether a row is other work than one of the baseline's: an accelerator ran, or a "
            "student's layers took turns next to the weights",
            nullable=True,
        ),
        "peak_bytes": size("peak of allocated device memory", nullable=True),
        "reserved_bytes": size("peak of memory that the allocator reserved", nullable=True),
        "rss_peak_bytes": size("peak resident memory of the process", nullable=True),
        "copied_bytes": size(
            "weights that the call held besides the model's: a student's, in lockstep",
            nullable=True,
        ),
        "compile_s": seconds(
            "time of the compiler before the call, which has none in it", nullable=True
        ),
        "foreign_load": real(
            "cores", "processors that others kept busy during the call", nullable=True, minimum=0
        ),
        "foreign_processes": count("processes", "others that computed on the GPU", nullable=True),
        "throttled": flag(
            "whether the processor or GPU was held back during the call", nullable=True
        ),
        "exclusive": flag("whether no other call of the run shared the device", nullable=True),
        "timing": text(
            "how the call was timed: step by step in turn with others, or by itself; missing of "
            "what nobody times",
            nullable=True,
            choices=TIMINGS,
        ),
        "beside": text(
            "unit of the baseline's call beside which this one was timed", nullable=True
        ),
        "disturbed": flag(
            "whether what disturbed the repeat was too much for its times: the baseline's steps "
            "and the load of others say so, never the variant's own time",
            nullable=True,
        ),
        "environment": text("key of the environment in environment.json"),
        "sha256": text("hash of what the call returned: 8-bit images, or latents", nullable=True),
        "status": text(
            "whether the call finished, or why not", choices=("ok", "failed", "unsupported")
        ),
        "message": text(
            "why the call failed or cannot run at all, or what must be known of its figures",
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
        "guided": flag("whether both branches were evaluated, as it ran"),
        "rows": count("rows", "denoiser rows evaluated in the step"),
        "latency_s": seconds("wall time of the step", form=MILLISECONDS),
        "denoiser_s": seconds("time inside the denoiser"),
        "scheduler_s": seconds("time inside scheduler.step"),
        "peak_bytes": size("peak of allocated device memory during the step", nullable=True),
        "guidance_cosine": real(
            "1", "cosine of conditional and unconditional prediction of x0", nullable=True
        ),
        "guidance_norm": real("1", "norm of their difference", nullable=True, minimum=0),
    },
    "images": {
        "unit": text("identifier of the pipeline call"),
        "variant": text("way of running the pipeline"),
        **PAIR,
        "draw": DRAW,
        "path": text("image file, relative to the study folder", nullable=True),
        "sha256": text("hash of the pixels", nullable=True),
        "flagged": flag(
            "whether a safety checker put a placeholder in its place, which has no scores",
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
        "nfe": count("rows", "denoiser rows of a call under this mask alone"),
        "rows": count("rows", "denoiser rows evaluated for it here, where it shares what it can"),
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
    "judged": {
        "unit": text("identifier of the plan"),
        "unguided": count("steps", "unguided steps of the plan"),
        "variant": text("way of running the pipeline; `plan` is the planned schedule"),
        **PAIR,
        "draw": DRAW,
        "nfe": count("rows", "denoiser rows per image"),
        **METRICS,
    },
    "training": {
        "unit": text("identifier of the row"),
        "step": count("1", "steps that the optimiser has taken"),
        "loss": real(
            "1", "mean training loss since the last row, missing in the first", nullable=True
        ),
        "held_out_loss": real("1", "the same loss on prompts that are not learnt from"),
        "lpips": real("1", "mean LPIPS of the student's images to the teacher's", nullable=True),
        "learning_rate": real("1", "of the next step", minimum=0),
        "seconds": seconds("of training so far, judging included"),
    },
    "distances": {
        "variant": text("way of running the pipeline"),
        "features": text("what is compared"),
        "distance": text("between the sets of images", choices=("frechet", "kernel")),
        "images": count("images", "in the variant's set"),
        "reference_images": count("images", "in the set that it is compared with"),
        "value": real("1", "the distance", label="value"),
        "value_lo": real(
            "1", "lo end of its 95 % interval; a Fréchet distance has none", nullable=True
        ),
        "value_hi": real("1", "hi end of its 95 % interval", nullable=True),
        "floor": real(
            "1",
            "the distance of as many references to the others: mean of several sets of them",
            nullable=True,
            label="floor",
        ),
        "floor_lo": real("1", "the lowest of these sets", nullable=True),
        "floor_hi": real("1", "the highest of these sets", nullable=True),
        "difference": real(
            "1",
            "to the baseline's distance, above 0 where the baseline is nearer",
            label=f"more than {BASELINE}",
            form=Format("+.4g"),
        ),
        "difference_lo": real("1", "lo end of its 95 % interval", nullable=True),
        "difference_hi": real("1", "hi end of its 95 % interval", nullable=True),
    },
    "known": {
        "metric": text("what judged"),
        "answer": text(
            "what was judged instead of the baseline's image", choices=(*ANSWERS, STILL)
        ),
        **PAIR,
        "value": real("1", "the metric of it, in the metric's own unit", nullable=True),
        "baseline": real(
            "1",
            "the metric of the baseline's own image; where it compares with that image, of the "
            "same one with every value moved by one of 255 levels",
            nullable=True,
        ),
        "higher_is_better": flag("the metric's direction"),
    },
    "history": {
        "accepted": text("when the figures became the baseline, UTC"),
        "reason": text("why"),
        "forced": text("what spoke against the run, where `--force` overruled it", nullable=True),
        "commit": text("of the code that they were measured with", nullable=True),
        "environment": text("key of the environment"),
        "variant": text("way of running the pipeline"),
        "figure": text("what was measured"),
        "value": real("that of the figure", "as `compare` gives it"),
    },
    "ledger": {
        "unit": text("identifier of the run"),
        "method": text("what was run: a way of training or of inference"),
        "checkpoint_gradients": flag("whether activations are computed again in the backward pass"),
        "rows": count("rows", "images of a step"),
        "part": text("what the memory is held for"),
        "at_peak_bytes": size("held at the peak; the parts sum to it", form=GIGABYTES),
        "most_bytes": size("most that the part held at one time"),
        "predicted_bytes": size("what arithmetic says of the most, if it does", nullable=True),
        "step_s": seconds("wall time of one step, without tracing"),
    },
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
        "first_sigma",
        "first_timestep",
        "sha256",
    ),
    "images": ("flagged", "draw"),
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
TRAINING = ("training",)
"""The table of a distillation."""
HISTORY = ("history",)
"""The table of a baseline's past."""
LEDGER = ("ledger",)
"""The table of what training and inference hold in memory."""
WITH_METRICS = ("images", "sensitivity", "judged")
"""Tables that may carry further float64 columns, one per registered metric."""
FURTHER_METRIC = real("1", "", nullable=True)
OF_VIDEOS: dict[str, dict[str, Column]] = {
    "images": {
        "frames": count("frames", "of the video, of which `path` is the file", nullable=True),
        **VIDEO,
    },
    "sensitivity": VIDEO,
    "judged": VIDEO,
}
"""Columns that a table has where its rows are of videos, and else has not."""

KEYS = {
    "runs": ["unit"],
    "steps": ["unit", "step"],
    "images": ["unit", "prompt_id", "seed"],
    "sensitivity": ["prompt_id", "seed", "mask"],
    "growth": ["prompt_id", "seed", "mask", "step"],
    "judged": ["unit", "variant", "prompt_id", "seed", "draw"],
    "training": ["step"],
    "distances": ["variant", "features", "distance"],
    "known": ["metric", "answer", "prompt_id", "seed"],
    "history": ["accepted", "variant", "figure"],
    "ledger": ["unit", "part"],
}
