"""`sdbench cost`: what dropping guidance saves on a model, at a size and a batch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sdbench.cli.console import command, console, print_table
from sdbench.cli.options import (
    Device,
    Dtype,
    Execution,
    GuidanceExecution,
    NumSteps,
    Repeats,
    WeightsVariant,
    compared,
    generated,
    running,
    written,
)
from sdbench.cli.values import new_folder, split, study_fields, whole

if TYPE_CHECKING:
    import pandas as pd

    from sdbench.study.study import Study

_Model = Annotated[
    str, generated(help="an architecture (gets random weights), a name, a hub id or a folder")
]
_Heights = Annotated[
    str, generated("--height", help="image heights in pixels, separated by commas")
]
_Width = Annotated[int | None, generated(help="image width in pixels; by default the height")]
_GuidanceScale = Annotated[
    float, generated(help="guidance scale w, above 1; it does not change the cost")
]
_Output = Annotated[str, generated(help="latent, or image: this also times decoding")]
_Fractions = Annotated[str, compared(help="shares of the steps, unguided at the end")]
_Batches = Annotated[str, running("--batch", help="images per call, separated by commas")]
_CountOnly = Annotated[bool, running("--count-only", help="count work and memory, and do not run")]
_By = Annotated[
    str | None,
    compared("--by", help="module: where time and work of a step go, by kind of layer"),
]
_Out = Annotated[Path | None, written(help="folder that gets one study per batch and size")]


@command
def cost(
    model: _Model,
    heights: _Heights,
    width: _Width = None,
    num_steps: NumSteps[int] = 20,
    guidance_scale: _GuidanceScale = 7.5,
    output: _Output = "latent",
    fractions: _Fractions = "20%,50%,100%",
    batches: _Batches = "1",
    repeats: Repeats[int] = 6,
    dtype: Dtype[str] = "float32",
    device: Device = None,
    weights_variant: WeightsVariant = None,
    execution: Execution[str] = "eager",
    guidance_execution: GuidanceExecution = None,
    count_only: _CountOnly = False,
    by: _By = None,
    out: _Out = None,
) -> None:
    """Show what dropping guidance saves on a model, and why it does not save more.

    Prints the counted work first, then the ideal, predicted and measured savings. With --by module
    it shows where the time and the work of one step go instead.
    """
    from sdbench.models.architectures import ARCHITECTURES

    if by not in (None, "module"):
        raise ValueError(f"--by takes module, not '{by}'")
    batch_sizes = whole("--batch", batches)
    sides = [(height, width or height) for height in whole("--height", heights)]
    is_architecture = model in ARCHITECTURES
    if is_architecture and (count_only or not by):
        with _without_collector():
            (_print_counted if by else _print_footprints)(model, sides, batch_sizes, dtype)
    elif count_only:
        names = ", ".join(ARCHITECTURES)
        raise ValueError(f"--count-only takes an architecture, not '{model}'; there are: {names}")
    if count_only:
        return

    from sdbench.experiments.cost import cost_study

    # The sweep brings the study to the other sizes.
    height, width = sides[0]
    fields = study_fields(locals()) | {"random_weights": is_architecture}
    study = cost_study(**fields, fractions=split(fractions) or ())
    (_print_modules if by else _print_savings)(study, batch_sizes, sides, out)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Without Python's garbage collector.

    Counting imports much and makes many small objects, of which hardly any are garbage; to look
    through them again and again takes a tenth of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _print_footprints(
    model: str, sides: list[tuple[int, int]], batch_sizes: list[int], dtype: str
) -> None:
    """Counted, not run: what a guided and an unguided step of the denoiser take."""
    from sdbench.experiments.cost import footprint_table
    from sdbench.records.columns import GIGABYTES, TERAFLOP

    table = footprint_table([model], sides=sides, batches=batch_sizes, dtype=dtype)
    rows = [
        (
            f"{row['height']} x {row['width']}",
            f"{row['batch']}",
            row["step"],
            f"{row['rows']}",
            TERAFLOP.text(row["flop"]),
            GIGABYTES.text(row["weights_bytes"]),
            GIGABYTES.text(row["activation_peak_bytes"]),
        )
        for _, row in table.iterrows()
    ]
    sizes = (f"{what} {GIGABYTES.unit}" for what in ("weights", "peak activations"))
    print_table(("pixels", "batch", "step", "rows", TERAFLOP.unit, *sizes), rows)


def _print_savings(
    study: Study, batch_sizes: list[int], sides: list[tuple[int, int]], out: Path | None
) -> None:
    """Measured: a table per batch and size, each as soon as it is there."""
    from sdbench.experiments.cost import sweep
    from sdbench.report.tables import cost_heading, cost_table

    for table in sweep(study, batches=batch_sizes, sides=sides, out=out):
        console.print(f"\n{cost_heading(table)}", highlight=False)
        console.print(cost_table(table))
        console.print(f"why not ideal: {table['reason'].iloc[0]}", highlight=False)


def _print_counted(
    model: str, sides: list[tuple[int, int]], batch_sizes: list[int], dtype: str
) -> None:
    """Counted, not run: the work of a step by kind of layer and by block."""
    from sdbench.experiments.counted_work import counted
    from sdbench.models.registry import DTYPES

    for (height, width), batch in product(sides, batch_sizes):
        size = {"height": height, "width": width, "batch": batch}
        table = counted(model, **size, dtype=DTYPES[dtype])
        console.print(f"\n{height} x {width}, batch {batch}, a guided step:", highlight=False)
        _print_groups(table)


def _print_modules(
    study: Study, batch_sizes: list[int], sides: list[tuple[int, int]], out: Path | None
) -> None:
    """Measured: where the time of a step goes, at every batch and size."""
    from sdbench.analysis.modules import (
        by_schedule,
        explanation,
        module_table,
        sums_differ,
        watched_more,
    )
    from sdbench.experiments.profiling import measured
    from sdbench.report.figures import module_figure
    from sdbench.report.tables import schedule_text
    from sdbench.study.check import loaded

    pipe = loaded(study)
    for (height, width), batch in product(sides, batch_sizes):
        seeds = tuple(range(batch))
        point = replace(study.generation, height=height, width=width, seeds=seeds, batch=batch)
        folder = (out or new_folder("cost")) / f"{height}x{width}-batch{batch}"
        table = measured(pipe, point, out=folder)

        console.print(f"\n{height} x {width}, batch {batch}", highlight=False)
        _print_groups(table)
        steps = study.num_steps
        masks = {variant.name: variant.rule(steps).mask for variant in study.variants}
        guided = {name: sum(mask) / len(mask) for name, mask in masks.items()}
        console.print(schedule_text(by_schedule(table, guided)))
        console.print(explanation(table), soft_wrap=True, highlight=False)
        more = watched_more(table)
        left = max(abs(sums_differ(table)[step]) for step in ("guided", "unguided"))
        console.print(
            f"Watching the layers lengthens a guided step by {more['guided']:.1%}, an unguided one "
            f"by {more['unguided']:.1%}; that is taken off, by how often a layer is entered. The "
            f"sums then differ from the steps' times by at most {left:.1%}.",
            soft_wrap=True,
            highlight=False,
        )
        most = table.iloc[0][["peak_flop_s", "peak_copy_s"]]
        module_figure(module_table(table), **most).savefig(folder / "modules.png")
        console.print(f"modules.parquet and modules.png are in {folder}", soft_wrap=True)


def _print_groups(table: pd.DataFrame) -> None:
    """By kind of layer, then by block."""
    from sdbench.analysis.modules import module_table
    from sdbench.report.tables import module_text

    for what in ("kind", "block"):
        console.print(module_text(module_table(table, what), what))
