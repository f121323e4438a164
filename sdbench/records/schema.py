"""The columns of every table: dtype, unit and meaning in one registry, and the check that is built from it.

Nothing here reads or writes files (`store.py`). One dtype per kind, whether or not a column may be missing: `string`,
`Int64` and `boolean` (missing is `pd.NA`) and `float64` (missing is `NaN`), so tables concatenate without a cast.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Column:
    """One column: storage is SI, `unit` is `1` for a pure number and empty for text and flags."""

    dtype: str
    unit: str
    meaning: str
    nullable: bool = False
    minimum: float | None = None
    choices: tuple[str, ...] = ()


def _text(meaning: str, *, nullable: bool = False, choices: tuple[str, ...] = ()) -> Column:
    return Column("string", "", meaning, nullable, choices=choices)


def _flag(meaning: str) -> Column:
    return Column("boolean", "", meaning)


def _count(unit: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column("Int64", unit, meaning, nullable, minimum=0)


def _seconds(meaning: str, *, nullable: bool = False) -> Column:
    return Column("float64", "s", meaning, nullable, minimum=0)


def _real(
    unit: str, meaning: str, *, nullable: bool = False, minimum: float | None = None
) -> Column:
    return Column("float64", unit, meaning, nullable, minimum)


_METRICS = {
    "lpips": _real("1", "LPIPS to the reference, 0 is identical", nullable=True),
    "flip": _real("1", "FLIP to the reference, 0 is identical", nullable=True),
    "ssim": _real("1", "structural similarity to the reference, 1 is identical", nullable=True),
    "psnr": _real(
        "dB", "peak signal-to-noise ratio to the reference, inf is identical", nullable=True
    ),
    "alignment": _real(
        "1", "share of the caption's attributes that the image shows", nullable=True
    ),
    "clip_score": _real("1", "CLIPScore of image and prompt, 0 to 100", nullable=True),
}
_PAIR = {
    "prompt_id": _text("identifier of the prompt within the study"),
    "prompt": _text("text of the prompt"),
    "seed": Column("Int64", "1", "seed of the image's own noise generator"),
}
_BRANCH = {
    "kind": _text("how the unguided steps were chosen; `baseline` has none"),
    "start": _count(
        "1",
        "first step of the run that the kind moves; missing where there is no such run",
        nullable=True,
    ),
    "length": _count("steps", "length of that run", nullable=True),
    "mask": _text("one letter per step, 1 where it is guided"),
}

# What a call measures is missing where the call failed, so those columns are nullable.
TABLES: dict[str, dict[str, Column]] = {
    "runs": {
        "study": _text("name of the study"),
        "unit": _text("identifier of the pipeline call"),
        "model": _text("model that ran"),
        "variant": _text("way of running the pipeline; the baseline is `cfg`"),
        "num_steps": _count("steps", "denoising steps asked of the pipeline"),
        "guidance_scale": _real("1", "guidance scale w asked of the pipeline"),
        "batch": _count("images", "images made by the call"),
        "height": _count("px", "image height", nullable=True),
        "width": _count("px", "image width", nullable=True),
        "dtype": _text("number format of the denoiser's weights"),
        "scheduler": _text("class of the scheduler"),
        "repeat": _count(
            "1", "index of the repeat; calls of one repeat are compared with each other"
        ),
        "phase": _text("warm-ups are kept and never averaged", choices=("warmup", "measured")),
        "latency_s": _seconds("wall time of the call", nullable=True),
        "text_s": _seconds(
            "time before the first step: text encoding and preparation", nullable=True
        ),
        "denoise_s": _seconds("time of the denoising loop", nullable=True),
        "decode_s": _seconds("time after the last step: decoding to images", nullable=True),
        "nfe": _real("rows/image", "denoiser rows evaluated per image", nullable=True, minimum=0),
        "forwards": _count("calls", "denoiser calls", nullable=True),
        "rows": _count("rows", "denoiser rows evaluated", nullable=True),
        "flop": _count("flop", "work of the denoiser, 2 per multiply-add", nullable=True),
        "peak_bytes": _count("bytes", "peak of allocated device memory", nullable=True),
        "reserved_bytes": _count(
            "bytes", "peak of memory that the allocator reserved", nullable=True
        ),
        "rss_peak_bytes": _count("bytes", "peak resident memory of the process", nullable=True),
        "compile_s": _seconds(
            "time of the compiler before the call, which has none in it", nullable=True
        ),
        "foreign_load": _real(
            "cores", "processors that others kept busy during the call", nullable=True, minimum=0
        ),
        "foreign_processes": _count("processes", "others that computed on the GPU", nullable=True),
        "throttled": Column(
            "boolean",
            "",
            "whether the processor or GPU was held back during the call",
            nullable=True,
        ),
        "exclusive": Column(
            "boolean", "", "whether no other call of the run shared the device", nullable=True
        ),
        "environment": _text("key of the environment in environment.json"),
        "sha256": _text("hash of what the call returned: 8-bit images, or latents", nullable=True),
        "status": _text(
            "whether the call finished, or why not", choices=("ok", "failed", "unsupported")
        ),
        "message": _text("why the call failed, or cannot run at all", nullable=True),
    },
    "steps": {
        "unit": _text("identifier of the pipeline call"),
        "variant": _text("way of running the pipeline"),
        "repeat": _count("1", "index of the repeat"),
        "phase": _text("phase of the call", choices=("warmup", "measured")),
        "step": _count("1", "index of the iteration in the call"),
        "timestep": _real("1", "timestep given to the scheduler"),
        "sigma": _real("1", "noise-to-signal ratio at the step's start", nullable=True, minimum=0),
        "guided": _flag("whether both branches were evaluated, as it ran"),
        "rows": _count("rows", "denoiser rows evaluated in the step"),
        "latency_s": _seconds("wall time of the step"),
        "denoiser_s": _seconds("time inside the denoiser"),
        "scheduler_s": _seconds("time inside scheduler.step"),
        "peak_bytes": _count(
            "bytes", "peak of allocated device memory during the step", nullable=True
        ),
        "guidance_cosine": _real(
            "1", "cosine of conditional and unconditional prediction of x0", nullable=True
        ),
        "guidance_norm": _real("1", "norm of their difference", nullable=True, minimum=0),
    },
    "images": {
        "unit": _text("identifier of the pipeline call"),
        "variant": _text("way of running the pipeline"),
        **_PAIR,
        "path": _text("image file, relative to the study folder", nullable=True),
        "sha256": _text("hash of the pixels", nullable=True),
        "reference_variant": _text(
            "variant whose image of the same pair is the reference", nullable=True
        ),
        **_METRICS,
    },
    "sensitivity": {
        "unit": _text("identifier of the pipeline call"),
        "model": _text("model that ran"),
        "scheduler": _text("class of the scheduler"),
        "num_steps": _count("steps", "denoising steps asked of the pipeline"),
        "guidance_scale": _real("1", "guidance scale w asked of the pipeline"),
        **_PAIR,
        **_BRANCH,
        "nfe": _count("rows", "denoiser rows of a call under this mask alone"),
        "rows": _count("rows", "denoiser rows evaluated for it here, where it shares what it can"),
        **_METRICS,
    },
    "growth": {
        "unit": _text("identifier of the pipeline call"),
        **_PAIR,
        **_BRANCH,
        "step": _count("1", "steps that have run"),
        "distance": _real(
            "1", "norm of the latents' difference to the baseline's, over the baseline's", minimum=0
        ),
    },
    "judged": {
        "unit": _text("identifier of the plan"),
        "unguided": _count("steps", "unguided steps of the plan"),
        "variant": _text("way of running the pipeline; `plan` is the planned schedule"),
        **_PAIR,
        "nfe": _count("rows", "denoiser rows per image"),
        **_METRICS,
    },
    "training": {
        "unit": _text("identifier of the row"),
        "step": _count("1", "steps that the optimiser has taken"),
        "loss": _real(
            "1", "mean training loss since the last row, missing in the first", nullable=True
        ),
        "held_out_loss": _real("1", "the same loss on prompts that are not learnt from"),
        "lpips": _real("1", "mean LPIPS of the student's images to the teacher's", nullable=True),
        "learning_rate": _real("1", "of the next step", minimum=0),
        "seconds": _seconds("of training so far, judging included"),
    },
    "distances": {
        "variant": _text("way of running the pipeline"),
        "features": _text("what is compared"),
        "distance": _text("between the sets of images", choices=("frechet", "kernel")),
        "images": _count("images", "in the variant's set"),
        "reference_images": _count("images", "in the set that it is compared with"),
        "value": _real("1", "the distance"),
        **{
            f"value_{end}": _real("1", f"{end} end of its 95 % interval", nullable=True)
            for end in ("lo", "hi")
        },
        "difference": _real(
            "1", "to the baseline's distance, above 0 where the baseline is nearer"
        ),
        **{
            f"difference_{end}": _real("1", f"{end} end of its 95 % interval", nullable=True)
            for end in ("lo", "hi")
        },
    },
    "history": {
        "accepted": _text("when the figures became the baseline, UTC"),
        "reason": _text("why"),
        "commit": _text("of the code that they were measured with", nullable=True),
        "environment": _text("key of the environment"),
        "variant": _text("way of running the pipeline"),
        "figure": _text("what was measured"),
        "value": _real("that of the figure", "as `compare` gives it"),
    },
    "ledger": {
        "unit": _text("identifier of the run"),
        "method": _text("what was run: a way of training or of inference"),
        "checkpoint_gradients": _flag("whether activations are computed anew in the backward pass"),
        "rows": _count("rows", "images of a step"),
        "part": _text("what the memory is held for"),
        "at_peak_bytes": _count("bytes", "held at the peak; the parts sum to it"),
        "most_bytes": _count("bytes", "most that the part held at one time"),
        "predicted_bytes": _count(
            "bytes", "what arithmetic says of the most, if it does", nullable=True
        ),
        "step_s": _seconds("wall time of one step, without tracing"),
    },
}
YOUNGER = {"runs": ("foreign_load", "foreign_processes", "throttled", "exclusive", "sha256")}
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
_METRIC = _real("1", "", nullable=True)

KEYS = {
    "runs": ["unit"],
    "steps": ["unit", "step"],
    "images": ["unit", "prompt_id", "seed"],
    "sensitivity": ["prompt_id", "seed", "mask"],
    "growth": ["prompt_id", "seed", "mask", "step"],
    "judged": ["unit", "variant", "prompt_id", "seed"],
    "training": ["step"],
    "distances": ["variant", "features", "distance"],
    "history": ["accepted", "variant", "figure"],
    "ledger": ["unit", "part"],
}


def columns(table: str) -> dict[str, Column]:
    """Columns of a table by name, in order.

    Raises:
        ValueError: there is no such table.
    """
    if table not in TABLES:
        raise ValueError(f"unknown table {table!r}; there are {', '.join(TABLES)}")
    return TABLES[table]


def with_key(table: str, names: Collection[str]) -> tuple[str, ...]:
    """Some columns of a table with its key and its unit, without which no doubled or strange row is seen; in order.

    Raises:
        ValueError: there is no such table or column.
    """
    registered = columns(table)
    unknown = [name for name in names if name not in registered]
    if unknown:
        raise ValueError(f"{table} has no column {unknown[0]!r}; there are {', '.join(registered)}")
    return tuple(name for name in registered if name in {"unit", *KEYS[table], *names})


def validate(
    table_frame: pd.DataFrame,
    table: str,
    *,
    asked: Collection[str] | None = None,
    source: str | None = None,
) -> pd.DataFrame:
    """Check a frame against the registry; it comes back with its columns in the registry's order.

    Args:
        table_frame: the frame.
        table: its name in `TABLES`.
        asked: the registered columns that were read, by `with_key`, text as categories; all, as text, when not given.
        source: what to call the frame in an error, usually its file.

    Raises:
        ValueError: names the source, the first wrong column, and what was expected of it.
    """
    registered = columns(table)
    expected = {
        name: column for name, column in registered.items() if asked is None or name in asked
    }
    if table in WITH_METRICS:
        expected |= {str(name): _METRIC for name in table_frame if name not in registered}
    fault = _frame_fault(table_frame, expected, text="string" if asked is None else "category")
    if fault is None and table_frame.duplicated(KEYS[table]).any():
        fault = f"a row is there twice; {', '.join(KEYS[table])} must differ"
    if fault is not None:
        raise ValueError(f"{source or table}: {fault}")
    return table_frame[list(expected)]


def frame(table: str, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Build a table from rows; a column that a row does not name is missing in that row.

    Raises:
        ValueError: a value does not fit its column, a required one is missing, or a name is unknown.
    """
    dtypes = {name: column.dtype for name, column in columns(table).items()}
    extra = dict.fromkeys(name for row in rows for name in row if name not in dtypes)
    if extra and table not in WITH_METRICS:
        raise ValueError(f"{table}: unexpected column {next(iter(extra))!r}")
    typed = {}
    for name, dtype in (dtypes | dict.fromkeys(extra, "float64")).items():
        try:
            typed[name] = pd.Series([row.get(name) for row in rows], dtype=dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{table}: column {name!r} must be {dtype}: {error}") from None
    return validate(pd.DataFrame(typed), table)


def empty(table: str) -> pd.DataFrame:
    """A table without rows, with the right dtypes."""
    return pd.DataFrame(
        {name: pd.Series(dtype=column.dtype) for name, column in columns(table).items()}
    )


def describe(table: str) -> pd.DataFrame:
    """What a table's columns mean: one row per column with `name`, `dtype`, `unit`, `meaning`."""
    return pd.DataFrame(
        [
            (name, column.dtype, column.unit, column.meaning)
            for name, column in columns(table).items()
        ],
        columns=["name", "dtype", "unit", "meaning"],
    )


def _frame_fault(
    table_frame: pd.DataFrame, expected: Mapping[str, Column], *, text: str
) -> str | None:
    """The first thing that is wrong with a frame's columns, in words; `text` is the dtype of text."""
    for name, column in expected.items():
        if name not in table_frame:
            return f"column {name!r} is missing; expected {column.dtype}"
    strange = [name for name in table_frame if name not in expected]
    if strange:
        return f"column {strange[0]!r} is not one of the table's"
    for name, column in expected.items():
        fault = _column_fault(table_frame[name], column, text)
        if fault is not None:
            return f"column {name!r} {fault}"
    return None


def _column_fault(values: "pd.Series[Any]", column: Column, text: str) -> str | None:
    """The first thing that is wrong with one column; each check passes over its values once."""
    if str(values.dtype) != (text if column.dtype == "string" else column.dtype):
        return f"is {values.dtype!r}; expected {column.dtype}"
    if not column.nullable and values.isna().any():
        return f"has missing values; expected {column.dtype} in every row"
    if column.minimum is not None and (values < column.minimum).any():
        return f"holds {values.min()}; expected at least {column.minimum:g}"
    strange = (
        [value for value in values.unique() if value not in column.choices]
        if column.choices
        else []
    )
    if strange:
        return f"holds {str(strange[0])!r}; expected one of {', '.join(column.choices)}"
    return None
