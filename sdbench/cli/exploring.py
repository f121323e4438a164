"""Commands with a procedure of their own: what guidance costs, which steps need it, schedules, students."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdbench.cli.console import INTERRUPTED, app, console, one_line_errors, print_table, quiet
from sdbench.cli.options import (
    json_object,
    new_folder,
    positive,
    seed_list,
    share,
    split,
    whole,
    write_mode,
)
from sdbench.distill.command import distill as _distill

if TYPE_CHECKING:
    from sdbench.records.store import Sweep


@app.command()
def cost(
    model: Annotated[
        str,
        typer.Option(help="an architecture (built with random weights), name, hub id or folder"),
    ],
    height: Annotated[str, typer.Option(help="pixels; several with commas between them")],
    width: Annotated[int | None, typer.Option(help="pixels; as high as wide by default")] = None,
    batch: Annotated[str, typer.Option(help="images per call, with commas between them")] = "1",
    num_steps: Annotated[int, typer.Option(help="denoising steps")] = 20,
    fractions: Annotated[
        str, typer.Option(help="of the steps, unguided at the end")
    ] = "20%,50%,100%",
    guidance_scale: Annotated[
        float, typer.Option(help="w, above 1; it costs the same whatever it is")
    ] = 7.5,
    repeats: Annotated[
        int, typer.Option(help="measured calls per variant; at least 6 for intervals")
    ] = 6,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
    output: Annotated[str, typer.Option(help="latent, or image to time decoding too")] = "latent",
    execution: Annotated[
        str, typer.Option(help="of the denoiser: eager, compile or cudagraph")
    ] = "eager",
    guidance_execution: Annotated[
        str | None, typer.Option(help="of a guided step: batched or sequential")
    ] = None,
    count_only: Annotated[
        bool, typer.Option("--count-only", help="run nothing; count work and memory")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="gets a study folder per batch and size")] = None,
) -> None:
    """Show what dropping guidance saves and why not more: counted work, then ideal, predicted and measured savings."""
    quiet()
    with one_line_errors():
        from sdbench.models.architectures import ARCHITECTURES

        batches, heights = whole("--batch", batch), whole("--height", height)
        sides = [(side, width or side) for side in heights]
        if model in ARCHITECTURES:
            _print_footprints(model, sides, batches, dtype)
        elif count_only:
            raise ValueError(
                f"only architectures are counted without running: {', '.join(ARCHITECTURES)}"
            )
        if count_only:
            return
        from sdbench.experiments.cost import cost_study, sweep
        from sdbench.report.cost import cost_heading, cost_table

        study = cost_study(
            model,
            height=sides[0][0],
            width=sides[0][1],
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            repeats=repeats,
            fractions=split(fractions) or (),
            dtype=dtype,
            device=device,
            output=output,
            execution=execution,
            guidance_execution=guidance_execution,
            random_weights=model in ARCHITECTURES,
        )
        for table in sweep(study, batches=batches, sides=sides, out=out):
            console.print(f"\n{cost_heading(table)}", highlight=False)
            console.print(cost_table(table))
            console.print(f"why not ideal: {table['reason'].iloc[0]}", highlight=False)


def _print_footprints(
    model: str, sides: list[tuple[int, int]], batches: list[int], dtype: str
) -> None:
    """Counted, not run: what a guided and an unguided step of the denoiser take."""
    from sdbench.experiments.cost import footprint_table

    rows = []
    for _, row in footprint_table([model], sides=sides, batches=batches, dtype=dtype).iterrows():
        figures = (
            row["flop"] / 1e12,
            row["weights_bytes"] / 1e9,
            row["activation_peak_bytes"] / 1e9,
        )
        known = (
            f"{row['height']} x {row['width']}",
            f"{row['batch']}",
            row["step"],
            f"{row['rows']}",
        )
        rows.append((*known, *(f"{x:.3g}" for x in figures)))
    headings = ("pixels", "batch", "step", "rows", "TFLOP", "weights GB", "peak activations GB")
    print_table(headings, rows)


@app.command()
def sensitivity(
    kind: Annotated[
        str, typer.Option(help="of masks: single, window, last, first or interval")
    ] = "single",
    length: Annotated[
        int | None, typer.Option(help="steps of the window; a quarter of all by default")
    ] = None,
    stride: Annotated[int, typer.Option(help="starts and lengths are multiples of it")] = 1,
    masks: Annotated[
        str | None, typer.Option(help="such as 1101,1011 in place of a kind: 1 is a guided step")
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(help="of one evaluation; from the free memory by default")
    ] = None,
    growth: Annotated[
        bool, typer.Option("--growth", help="keep how far the latents are at every step, too")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="the sweep's folder; a new one under sdbench-results/")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the sweep in --out")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the sweep in --out")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="name, hub id or folder; see `sdbench models`")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="a prompt; may be given several times")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="a text file with one prompt per line")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="with commas between them")] = None,
    num_steps: Annotated[int | None, typer.Option(help="denoising steps")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="w, above 1")] = None,
    batch: Annotated[
        int | None, typer.Option(help="(prompt, seed) pairs that share their calls")
    ] = None,
    metrics: Annotated[str, typer.Option(help="with commas between them")] = "lpips",
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
    arguments: Annotated[
        str | None, typer.Option(help="further pipeline arguments, as a JSON object")
    ] = None,
) -> None:
    """Show which steps need guidance: drop it at some, in every way of one kind, and compare with the guided image."""
    quiet()
    with one_line_errors():
        mode = write_mode(resume=resume, overwrite=overwrite, out=out)
        from sdbench.experiments.sensitivity import SweepPlan, sweep
        from sdbench.study.check import loaded
        from sdbench.study.study import Study

        options = {
            "model": model,
            "prompts": prompt,
            "prompts_file": None if prompts_file is None else str(prompts_file),
            "seeds": seed_list(seeds),
            "num_steps": num_steps,
            "guidance_scale": guidance_scale,
            "batch": batch,
            "metrics": split(metrics),
            "dtype": dtype,
            "device": device,
            "arguments": json_object(arguments),
        }
        given = {key: value for key, value in options.items() if value is not None}
        study = Study.protocol("mini-sd", **given, variants=["cfg"], name="sensitivity")
        plan = SweepPlan(kind, length, stride, tuple(split(masks) or ()), max_rows, growth)
        folder = out or new_folder("sensitivity")
        try:
            found = sweep(loaded(study), study, plan, folder, mode=mode)
        except KeyboardInterrupt:
            console.print(
                f"\nInterrupted. What was finished is in {folder}; continue with --resume --out {folder}"
            )
            raise typer.Exit(INTERRUPTED) from None
        _report_sweep(found)


def _report_sweep(found: Sweep) -> None:
    """What the sweep took, its curves as a picture, and where everything is."""
    from sdbench.analysis.sensitivity import evaluations, sensitivity_curve
    from sdbench.report.figures import sensitivity_figure

    took = evaluations(found.sensitivity)
    console.print(
        f"{took.branched:.0f} denoiser rows per (prompt, seed) pair; one call per mask would take {took.naive:.0f}",
        highlight=False,
    )
    names = [name.partition(":")[0] for name in found.study["metrics"]]
    metrics = [name for name in names if not found.sensitivity[name].isna().all()]
    if metrics and not found.study["sweep"]["masks"]:
        curves = {metric: sensitivity_curve(found.sensitivity, metric) for metric in metrics}
        steps = len(found.sensitivity["mask"].iloc[0])
        sensitivity_figure(curves, steps=steps).savefig(found.folder / "sensitivity.png")
        console.print(f"  sensitivity.png     {', '.join(metrics)} by where guidance is dropped")
    console.print(
        f"  sensitivity.parquet one row per pair and mask, in {found.folder}", soft_wrap=True
    )


@app.command()
def plan(
    unguided: Annotated[
        str | None, typer.Option(help="numbers of unguided steps, with commas between them")
    ] = None,
    max_lpips: Annotated[
        float | None, typer.Option(help="as many unguided steps as keep this LPIPS")
    ] = None,
    saving: Annotated[
        str | None, typer.Option(help="as few unguided steps as save this share of the time: 15%")
    ] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="tuning prompts, one per line")] = None,
    held_out_file: Annotated[
        Path | None, typer.Option(help="other prompts, on which the plans are judged")
    ] = None,
    pairs: Annotated[
        int, typer.Option(help="of mini-sd, without the files: held-out captions")
    ] = 128,
    seeds: Annotated[str | None, typer.Option(help="with commas between them")] = None,
    metric: Annotated[
        str, typer.Option(help="what the search lowers, or raises where higher is better")
    ] = "lpips",
    scales: Annotated[
        str | None, typer.Option(help="guidance scales to try for the steps that stay guided")
    ] = None,
    rounds: Annotated[int, typer.Option(help="of exchanges, at most")] = 6,
    max_rows: Annotated[
        int | None, typer.Option(help="of one evaluation; from the free memory by default")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the plans' folder; a new one under sdbench-results/")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the plans in --out")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="name, hub id or folder; see `sdbench models`")
    ] = None,
    num_steps: Annotated[int | None, typer.Option(help="denoising steps")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="w, above 1")] = None,
    batch: Annotated[
        int | None, typer.Option(help="(prompt, seed) pairs that share their calls")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
) -> None:
    """Find the steps to leave unguided, and judge them on other prompts against every simple choice of as many."""
    quiet()
    with one_line_errors():
        if max_lpips is not None and metric != "lpips":
            raise ValueError(f"--max-lpips bounds LPIPS, so --metric must be lpips, not {metric}")
        from sdbench.analysis.frontier import plan_table
        from sdbench.analysis.tables import summarise
        from sdbench.experiments.planning import Target, plan_studies
        from sdbench.experiments.planning import plan as find_plans
        from sdbench.instruments.quality import find_metric
        from sdbench.report.figures import plan_figure
        from sdbench.report.tables import plan_text
        from sdbench.study.check import loaded
        from sdbench.study.study import Study

        numbers = () if unguided is None else tuple(whole("--unguided", unguided))
        target = Target(numbers, max_lpips, None if saving is None else share("--saving", saving))
        options = {
            "model": model,
            "seeds": seed_list(seeds),
            "num_steps": num_steps,
            "guidance_scale": guidance_scale,
            "batch": batch,
            "dtype": dtype,
            "device": device,
        }
        given = {key: value for key, value in options.items() if value is not None}
        study = Study.protocol("mini-sd", **given, variants=["cfg"], metrics=[metric], name="plan")
        tuning, held_out = plan_studies(study, prompts_file, held_out_file, pairs=pairs)
        tried = [positive("--scales", text) for text in split(scales) or ()]
        folder = out or new_folder("plan")
        mode = write_mode(resume=False, overwrite=overwrite, out=out)
        limits: dict[str, Any] = {"scales": tried, "rounds": rounds, "max_rows": max_rows}
        found = find_plans(
            loaded(study), tuning, held_out, target, folder, metric=metric, mode=mode, **limits
        )
        kind, _ = find_metric(metric)
        timing = summarise(found.timing)
        table = plan_table(
            found.judged, kind.name, higher_is_better=bool(kind.higher_is_better), timing=timing
        )
        console.print(plan_text(table, kind.name))
        if (
            "alignment" in found.judged
            and metric != "alignment"
            and found.judged["alignment"].notna().any()
        ):
            by_alignment = plan_table(
                found.judged, "alignment", higher_is_better=True, timing=timing
            )
            console.print(plan_text(by_alignment, "alignment"))
        plan_figure(table, kind.name).savefig(folder / "plan.png")
        console.print(
            f"Schedules (plan-K.json), judged.parquet, timing/ and plan.png are in {folder}",
            soft_wrap=True,
        )


@app.command()
@functools.wraps(_distill)
def distill(**options: Any) -> None:
    """Run the command of `distill/command.py` with this module's way with errors."""
    quiet()
    with one_line_errors():
        try:
            _distill(**options)
        except KeyboardInterrupt:
            console.print(f"\nInterrupted. Continue with --resume --out {options['out']}")
            raise typer.Exit(INTERRUPTED) from None
