"""`sdbench sensitivity`: which steps of a loop need guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from sdbench.cli.console import command, console, resumable
from sdbench.cli.options import (
    Arguments,
    Device,
    Dtype,
    GuidanceScale,
    MaxRows,
    Metrics,
    Model,
    NumSteps,
    Out,
    Overwrite,
    Prompt,
    PromptsFile,
    Resume,
    Seeds,
    SharedBatch,
    WeightsVariant,
    compared,
    written,
)
from sdbench.cli.values import new_folder, split, study_fields, write_mode

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from sdbench.records.store import Sweep

PER_LINE = 10  # steps

_Kind = Annotated[str, compared(help="kind of masks: single, window, last, first or interval")]
_Length = Annotated[int | None, compared(help="steps of a window; a quarter of all by default")]
_Stride = Annotated[int, compared(help="try only starts and lengths that are multiples of this")]
_Masks = Annotated[
    str | None,
    compared(help="masks of your own instead, separated by commas: 1 is a guided step"),
]
_Estimate = Annotated[
    bool,
    compared(
        "--estimate",
        help="estimate single steps to first order: for 50 steps a tenth of the work of a sweep",
    ),
]
_Switch = Annotated[
    str,
    compared(
        help="what a step is put without or into: guidance, or precision:FORMAT for the denoiser "
        "in another number format"
    ),
]
_Growth = Annotated[
    bool,
    written("--growth", help="also record how far the latents are off at every step"),
]


@command
def sensitivity(
    kind: _Kind = "single",
    length: _Length = None,
    stride: _Stride = 1,
    masks: _Masks = None,
    estimate: _Estimate = False,
    switch: _Switch = "guidance",
    metrics: Metrics = "lpips",
    model: Model = None,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    seeds: Seeds = None,
    num_steps: NumSteps[int | None] = None,
    guidance_scale: GuidanceScale = None,
    arguments: Arguments = None,
    batch: SharedBatch = None,
    max_rows: MaxRows = None,
    dtype: Dtype[str | None] = None,
    device: Device = None,
    weights_variant: WeightsVariant = None,
    growth: _Growth = False,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Show which steps need guidance: drop it at some, and compare with the guided image."""
    mode = write_mode(resume=resume, overwrite=overwrite, out=out)
    if estimate:
        kind = _estimated(kind, length, stride, masks)

    from sdbench.experiments.branch_choice import BranchChoice
    from sdbench.experiments.sensitivity import sweep
    from sdbench.instruments.memory import PeakBytes
    from sdbench.records.names import BASELINE
    from sdbench.study.check import loaded
    from sdbench.study.study import Study

    fields = study_fields(locals())
    study = Study.protocol("mini-sd", **fields, variants=[BASELINE])
    generation = study.generation
    asked = study.metrics or ()

    chosen = tuple(split(masks) or ())
    choice = BranchChoice(kind, length, stride, chosen, max_rows, growth, switch)
    folder = out or new_folder("sensitivity")
    pipe = loaded(generation)
    with resumable(folder), PeakBytes(pipe.device) as memory:
        results = sweep(pipe, generation, choice, folder, metrics=asked, mode=mode)
    _report(results, memory.peak_bytes)


def _estimated(kind: str, length: int | None, stride: int, masks: str | None) -> str:
    """The kind of an estimate, which takes no choice of masks."""
    if (kind, length, stride, masks) != ("single", None, 1, None):
        raise ValueError(
            "--estimate is of every single step: leave out --kind, --length, --stride and --masks"
        )
    return "estimate"


def _report(results: Sweep, peak_bytes: int) -> None:
    """What the sweep took, its curves as a picture, and where everything is."""
    from sdbench.analysis.sensitivity import evaluations, sensitivity_curve
    from sdbench.report.figures import sensitivity_figure

    table = results.sensitivity
    rows = evaluations(table)
    console.print(
        f"{rows.branched:.0f} denoiser rows per (prompt, seed) pair; "
        f"one call per mask would take {rows.naive:.0f}",
        highlight=False,
    )
    console.print(f"peak memory {peak_bytes / 1e9:.2f} GB", highlight=False)

    # Masks from a list lie on no axis that a curve could have.
    names = [name.partition(":")[0] for name in results.study["metrics"]]
    metrics = [name for name in names if not table[name].isna().all()]
    if metrics and not results.study["sweep"]["masks"]:
        curves = {metric: sensitivity_curve(table, metric) for metric in metrics}
        if results.study["sweep"]["kind"] == "estimate":
            _print_estimate(curves)
        switch = results.study["sweep"].get("switch")
        figure = sensitivity_figure(curves, steps=len(table["mask"].iloc[0]), switch=switch)
        figure.savefig(results.folder / "sensitivity.png")
        where = "guidance is dropped" if switch is None else f"steps are in {switch}"
        console.print(f"  sensitivity.png     {', '.join(metrics)} by where {where}")
    console.print(
        f"  sensitivity.parquet one row per pair and mask, in {results.folder}", soft_wrap=True
    )


def _print_estimate(curves: Mapping[str, pd.DataFrame]) -> None:
    """The mean of every step, ten in a line."""
    for metric, curve in curves.items():
        console.print(f"first-order estimate of {metric} without guidance at each step alone:")
        steps = curve["start"].astype(int)
        texts = [f"{value:.2e}" for value in curve[metric]]
        for first in range(0, len(texts), PER_LINE):
            line = " ".join(texts[first : first + PER_LINE])
            console.print(f"  {steps.iloc[first]:>4}  {line}", highlight=False, soft_wrap=True)
