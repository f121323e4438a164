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
Model = Annotated[str | None, generated(help="name, hub id or folder; see `sdbench models`")]
Prompt = Annotated[list[str] | None, generated(help="a prompt; may be given several times")]
PromptsFile = Annotated[Path | None, generated(help="a text file with one prompt per line")]
Seeds = Annotated[str | None, generated(help="with commas between them")]
NumSteps = Annotated[T, generated(help="denoising steps")]
GuidanceScale = Annotated[float | None, generated(help="w, above 1")]
Arguments = Annotated[str | None, generated(help="further pipeline arguments, as a JSON object")]

# What is compared.
Variants = Annotated[str | None, compared(help="with commas between them; see `sdbench variants`")]
Metrics = Annotated[str | None, compared(help="with commas between them")]
Metric = Annotated[str, compared(help="a metric of the study's images")]
Threshold = Annotated[
    str,
    compared(help="the smallest slowdown that matters: one of this size is told from none at all"),
]
Undecided = Annotated[
    str, compared(help="what a time is that repeats are too few to decide: fail (exit 3) or pass")
]
Absolute = Annotated[
    bool, compared("--absolute", help="compare times themselves, too: on one machine only")
]

# How it runs.
SharedBatch = Annotated[int | None, running(help="(prompt, seed) pairs that share their calls")]
Repeats = Annotated[T, running(help="measured calls per variant; at least 6 for intervals")]
StudyRepeats = Annotated[
    str | None,
    running(
        "--repeats",
        help="measured calls per variant; at least 6 for intervals; or 'until 2 points': from 6 to "
        "24, until no saving's interval reaches further to a side",
    ),
]
Precision = Annotated[
    str | None, running(help="points: the same as --repeats 'until so many points'")
]
MaxRows = Annotated[int | None, running(help="of one evaluation; from the free memory by default")]
Dtype = Annotated[T, running(help="float32, float16 or bfloat16")]
Device = Annotated[str | None, running(help="cpu or cuda")]
WeightsVariant = Annotated[
    str | None, running(help="of the model's files, such as fp16; by default those without one")
]
Execution = Annotated[T, running(help="of the denoiser: eager, compile or cudagraph")]
GuidanceExecution = Annotated[str | None, running(help="of a guided step: batched or sequential")]

# Output.
Out = Annotated[
    Path | None, written(help="folder of the results; a new one under sdbench-results/")
]
Resume = Annotated[bool, written("--resume", help="continue what is in --out")]
Overwrite = Annotated[bool, written("--overwrite", help="replace what is in --out")]
Accept = Annotated[
    str | None, written(help="make the run the baseline, for this reason, whatever changed")
]
Force = Annotated[
    bool, written("--force", help="accept it though its times spread; the history says so")
]
Markdown = Annotated[Path | None, written(help="write the table in Markdown")]
Json = Annotated[Path | None, written("--json", help="write every figure as JSON")]

# Arguments.
Results = Annotated[Path, typer.Argument(help="folder of a study")]
