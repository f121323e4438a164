"""The options that several commands have, and the panels in which `--help` shows them.

An alias with brackets takes its type: `NumSteps[int | None]` may be left out, because a study has
its own value; `NumSteps[int]` goes with a command's default. What one command alone has stands in
that command's file; what the texts of options mean stands in `values.py`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer

T = TypeVar("T")

# The panels, in the order of the commands' options.
generated = partial(typer.Option, rich_help_panel="What is generated")
compared = partial(typer.Option, rich_help_panel="What is compared")
running = partial(typer.Option, rich_help_panel="How it runs")
written = partial(typer.Option, rich_help_panel="Output")

# What is generated.
Model = Annotated[
    str | None, generated(help="the model: a name of `sdbench models`, a hub id or a folder")
]
Prompt = Annotated[list[str] | None, generated(help="one prompt; repeat the option for more")]
PromptsFile = Annotated[Path | None, generated(help="text file with one prompt per line")]
Seeds = Annotated[str | None, generated(help="seeds, separated by commas")]
NumSteps = Annotated[T, generated(help="number of denoising steps")]
GuidanceScale = Annotated[float | None, generated(help="guidance scale w, above 1")]
Arguments = Annotated[
    str | None, generated(help="further arguments of the pipeline, as a JSON object")
]
HeldOutPairs = Annotated[
    int, generated("--pairs", help="embedded models without files: number of held-out captions")
]
TuningFile = Annotated[
    Path | None, generated("--prompts-file", help="text file of prompts to search on, one per line")
]
HeldOutFile = Annotated[
    Path | None, generated("--held-out-file", help="text file of other prompts, to judge on")
]

# What is compared.
Variants = Annotated[
    str | None, compared(help="variants, separated by commas; see `sdbench variants`")
]
Metrics = Annotated[str | None, compared(help="metrics of the images, separated by commas")]
Metric = Annotated[str, compared(help="one metric of the study's images")]
Threshold = Annotated[
    str,
    compared(help="smallest slowdown that matters: `same` means that it is ruled out"),
]
Undecided = Annotated[
    str, compared(help="if the repeats cannot decide a time: fail (exit code 3) or pass")
]
Absolute = Annotated[
    bool, compared("--absolute", help="compare times in seconds, too; on one machine only")
]

# How it runs.
SharedBatch = Annotated[int | None, running(help="(prompt, seed) pairs that share a call")]
Repeats = Annotated[T, running(help="measured calls per variant; intervals need at least 6")]
StudyRepeats = Annotated[
    str | None,
    running(
        "--repeats",
        help="measured calls per variant; intervals need at least 6. Or 'until 2 points': 6 to 24 "
        "calls, until every saving is known to 2 points to either side",
    ),
]
Precision = Annotated[str | None, running(help="2 is short for --repeats 'until 2 points'")]
MaxRows = Annotated[
    int | None, running(help="most rows of one evaluation; by default what fits into memory")
]
Dtype = Annotated[T, running(help="number format: float32, float16 or bfloat16")]
Device = Annotated[str | None, running(help="cpu or cuda; by default cuda where there is one")]
WeightsVariant = Annotated[
    str | None,
    running(help="variant of the model's files, such as fp16; by default files without one"),
]
Execution = Annotated[T, running(help="how the denoiser runs: eager, compile or cudagraph")]
GuidanceExecution = Annotated[
    str | None, running(help="how the halves of a guided step run: batched or sequential")
]

# Output.
Out = Annotated[
    Path | None, written(help="folder of the results; by default a new one in sdbench-results/")
]
Resume = Annotated[bool, written("--resume", help="continue the run in --out")]
Overwrite = Annotated[bool, written("--overwrite", help="replace the results in --out")]
Accept = Annotated[str | None, written(help="make the run the new baseline, and keep this reason")]
Force = Annotated[
    bool, written("--force", help="accept a run whose times spread; the history says so")
]
Wide = Annotated[bool, written("--wide", help="print every column, however wide the table")]
Markdown = Annotated[Path | None, written(help="file for the table in Markdown")]
Json = Annotated[Path | None, written("--json", help="file for every figure, as JSON")]

# Arguments.
Results = Annotated[Path, typer.Argument(help="folder of the study")]
