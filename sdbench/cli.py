"""The command line: arguments to one library call, results to text and pictures, bad input to one line and exit code 2.

The library is imported inside the commands, so that `sdbench --help` loads no torch.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sdbench.distill.command import distill as _distill

if TYPE_CHECKING:
    from sdbench.records.store import Mode, Results, Sweep
    from sdbench.study.plan import Study

app = typer.Typer(
    help="Guided diffusion inference, measured step by step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(markup=False)  # names of variants and folders may hold brackets
INTERRUPTED = 130


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Bad input ends with one line on stderr and exit code 2, and so does a disk without space."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        typer.echo(f"error: {text}", err=True)
        raise typer.Exit(2) from None


def _split(text: str | None, kind: Callable[[str], Any] = str) -> list[Any] | None:
    return None if text is None else [kind(part.strip()) for part in text.split(",") if part.strip()]


def _variants(text: str | None) -> list[str] | None:
    """Variants between commas; one that stands before a setting (`cached:5,from=20`) belongs to it."""
    if text is None:
        return None
    return [part.strip() for part in re.split(r",(?!\s*(?:from=|split\b))", text) if part.strip()]


def _numbers(text: str | None) -> list[int] | None:
    try:
        return _split(text, int)
    except ValueError:
        raise ValueError(f"--seeds takes whole numbers with commas between them, not '{text}'") from None


def _json_object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    from sdbench.records.files import parsed

    try:
        value = parsed(json.loads, text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"--arguments takes a JSON object, not '{text}'")
    return value


def _new_folder(name: str) -> Path:
    """A folder that is not there yet: a clock that was set back gives the same stamp again."""
    stamped = Path("sdbench-results") / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    others = (stamped.with_name(f"{stamped.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([stamped], others) if not folder.exists())


@app.command()
def run(
    study: Annotated[Path | None, typer.Argument(help="a study file (TOML); without one, mini-sd's own study")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="a study that ships with sdbench; a wrong name lists them")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="the study's folder, or a URL (s3://...); a new one under sdbench-results/")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the study in --out")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the study in --out")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say how long it takes and how much memory")] = False,
    model: Annotated[str | None, typer.Option(help="name, hub id or folder; see `sdbench models`")] = None,
    variants: Annotated[str | None, typer.Option(help="with commas between them; see `sdbench variants`")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="a prompt; may be given several times")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="a text file with one prompt per line")] = None,
    seeds: Annotated[str | None, typer.Option(help="with commas between them")] = None,
    num_steps: Annotated[int | None, typer.Option(help="denoising steps")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="w, above 1")] = None,
    batch: Annotated[int | None, typer.Option(help="(prompt, seed) pairs per call")] = None,
    repeats: Annotated[int | None, typer.Option(help="measured calls per variant; at least 6 for intervals")] = None,
    warmups: Annotated[int | None, typer.Option(help="calls before them, marked and not averaged")] = None,
    metrics: Annotated[str | None, typer.Option(help="with commas between them")] = None,
    height: Annotated[int | None, typer.Option(help="pixels")] = None,
    width: Annotated[int | None, typer.Option(help="pixels")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
    output: Annotated[str | None, typer.Option(help="image, or latent to stop before decoding")] = None,
    execution: Annotated[str | None, typer.Option(help="of the denoiser: eager, compile or cudagraph")] = None,
    guidance_execution: Annotated[str | None, typer.Option(help="of a guided step: batched or sequential")] = None,
    memory_format: Annotated[str | None, typer.Option(help="of the denoiser: contiguous or channels_last")] = None,
    threads: Annotated[int | None, typer.Option(help="of torch on the CPU")] = None,
    random_weights: Annotated[
        bool | None, typer.Option("--random-weights", help="build an architecture without its weights, to see its cost")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="of every image")] = None,
    arguments: Annotated[str | None, typer.Option(help="further pipeline arguments, as a JSON object")] = None,
    controls: Annotated[
        bool | None, typer.Option("--controls", help="add the controls: as many evaluations, spent otherwise")
    ] = None,
    name: Annotated[str | None, typer.Option(help="of the study in the tables")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: workers with a GPU or a share of the CPU each")] = "local",
    workers: Annotated[int | None, typer.Option(help="of the Ray engine; one per GPU, or two, by default")] = None,
    shard: Annotated[str | None, typer.Option(help="run only this part, such as 2/8; see `sdbench gather`")] = None,
) -> None:
    """Run a study: every variant on every prompt and seed, timed step by step and compared with full guidance."""
    _quiet()
    with _one_line_errors():
        mode = _mode(resume=resume, overwrite=overwrite, out=out)
        from sdbench.study.plan import Study

        options = {
            "model": model,
            "variants": _variants(variants),
            "prompts": prompt,
            "prompts_file": None if prompts_file is None else str(prompts_file),
            "seeds": _numbers(seeds),
            "num_steps": num_steps,
            "guidance_scale": guidance_scale,
            "batch": batch,
            "repeats": repeats,
            "warmups": warmups,
            "metrics": _split(metrics),
            "height": height,
            "width": width,
            "dtype": dtype,
            "device": device,
            "output": output,
            "execution": execution,
            "guidance_execution": guidance_execution,
            "memory_format": memory_format,
            "threads": threads,
            "random_weights": random_weights,
            "negative_prompt": negative_prompt,
            "arguments": _json_object(arguments),
            "controls": controls,
            "name": name,
        }
        given = {key: value for key, value in options.items() if value is not None}
        if study is not None and protocol is not None:
            raise ValueError("give a study file or --protocol, not both")
        planned = Study.from_toml(study, **given) if study else Study.protocol(protocol or "mini-sd", **given)
        if dry_run:
            _say_estimate(planned)
            return
        folder = out or str(_new_folder(planned.name))
        results = _run(planned, folder, mode=mode, engine=engine, workers=workers, shard=shard)
        _report(results, folder)
    failed = results.runs[results.runs["status"] == "failed"]
    if len(failed):
        for variant, message in failed[["variant", "message"]].drop_duplicates().itertuples(index=False):
            typer.echo(f"failed: {variant}: {message}", err=True)
        raise typer.Exit(1)


def _run(planned: Study, folder: str, **how: Any) -> Results:
    """Run a study; of its tables no more is read than the report shows."""
    from sdbench.analysis.tables import SUMMARY
    from sdbench.records.store import read
    from sdbench.study.runner import record

    shown = {
        "steps": (*SUMMARY["steps"], "variant", "guidance_cosine"),
        "images": (*SUMMARY["images"], "prompt", "path"),
    }
    try:
        return read(record(planned, folder, **how), columns=SUMMARY | shown)
    except KeyboardInterrupt:
        console.print(f"\nInterrupted. What was finished is in {folder}; continue with --resume --out {folder}")
        raise typer.Exit(INTERRUPTED) from None


def _report(results: Results, place: str) -> None:
    """The table with its legend, the pictures, and where everything is."""
    from sdbench.analysis.tables import step_profile, summarise
    from sdbench.records.remote import Remote
    from sdbench.report.figures import frontier_figure, image_grid, step_figure
    from sdbench.report.tables import legend, summary_table

    if not (results.runs["status"] == "ok").any():
        return
    summary = summarise(results)
    console.print(summary_table(summary, width=console.width))
    for variant, reason in summary.loc[summary["unsupported"] != "", ["variant", "unsupported"]].itertuples(
        index=False
    ):
        console.print(f"unsupported: {variant}: {reason}", markup=False, highlight=False)
    console.print(legend(summary), markup=False, highlight=False)
    figures = {"steps.png": step_figure(step_profile(results))}
    meaning = {
        "runs.parquet, steps.parquet, images.parquet": "one row per call, step and image",
        "steps.png": "time of every step, and how far guidance still moves the prediction",
    }
    if len(results.images):
        pairs = results.images[["prompt_id", "seed"]].drop_duplicates().head(8)
        figures["grid.png"] = image_grid(results, pairs=list(pairs.itertuples(index=False, name=None)))
        meaning["grid.png"] = "the images: one row per prompt, one column per variant"
        figures["frontier.png"] = frontier_figure(summary)
        meaning["frontier.png"] = "time saved against distance to the baseline's image"
    for name, figure in figures.items():
        figure.savefig(results.folder / name)
    if remote := Remote.of(place):
        remote.put(results.folder, figures)
    console.print(f"\nTables and pictures are in {place}:", soft_wrap=True)
    for name, text in meaning.items():
        console.print(f"  {name:13} {text}")


def _say_estimate(planned: Study) -> None:
    from sdbench.study.runner import estimate

    expected = estimate(planned)
    console.print(
        f"{expected.calls} calls, about {expected.seconds / 60:.1f} minutes of computing here, "
        f"peak memory of the process about {expected.rss_peak_bytes / 1e9:.1f} GB (not counting image metrics)"
    )


@app.command()
def gather(
    out: Annotated[Path, typer.Argument(help="gets the whole study")],
    shards: Annotated[list[Path], typer.Argument(help="the folder of every shard, in any order")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the study in OUT")] = False,
) -> None:
    """Put together what `sdbench run --shard` left in several folders."""
    _quiet()
    with _one_line_errors():
        from sdbench.study.shards import gather as gathered

        results = gathered(out, shards, mode=_mode(resume=False, overwrite=overwrite, out=out))
        console.print(f"{len(results.runs)} calls of {len(shards)} shards are in {out}", soft_wrap=True)


@app.command()
def cost(
    model: Annotated[str, typer.Option(help="an architecture (built with random weights), name, hub id or folder")],
    height: Annotated[str, typer.Option(help="pixels; several with commas between them")],
    width: Annotated[int | None, typer.Option(help="pixels; as high as wide by default")] = None,
    batch: Annotated[str, typer.Option(help="images per call, with commas between them")] = "1",
    num_steps: Annotated[int, typer.Option(help="denoising steps")] = 20,
    fractions: Annotated[str, typer.Option(help="of the steps, unguided at the end")] = "20%,50%,100%",
    guidance_scale: Annotated[float, typer.Option(help="w, above 1; it costs the same whatever it is")] = 7.5,
    repeats: Annotated[int, typer.Option(help="measured calls per variant; at least 6 for intervals")] = 6,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
    output: Annotated[str, typer.Option(help="latent, or image to time decoding too")] = "latent",
    execution: Annotated[str, typer.Option(help="of the denoiser: eager, compile or cudagraph")] = "eager",
    guidance_execution: Annotated[str | None, typer.Option(help="of a guided step: batched or sequential")] = None,
    count_only: Annotated[bool, typer.Option("--count-only", help="run nothing; count work and memory")] = False,
    out: Annotated[Path | None, typer.Option(help="gets a study folder per batch and size")] = None,
) -> None:
    """Show what dropping guidance saves and why not more: counted work, then ideal, predicted and measured savings."""
    _quiet()
    with _one_line_errors():
        from sdbench.models.architectures import ARCHITECTURES

        batches, heights = _whole("--batch", batch), _whole("--height", height)
        sides = [(side, width or side) for side in heights]
        if model in ARCHITECTURES:
            _print_footprints(model, sides, batches, dtype)
        elif count_only:
            raise ValueError(f"only architectures are counted without running: {', '.join(ARCHITECTURES)}")
        if count_only:
            return
        from sdbench.report.cost import cost_heading, cost_table
        from sdbench.study.cost import cost_study, sweep

        study = cost_study(
            model,
            height=sides[0][0],
            width=sides[0][1],
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            repeats=repeats,
            fractions=_split(fractions) or (),
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


def _print_footprints(model: str, sides: list[tuple[int, int]], batches: list[int], dtype: str) -> None:
    """Counted, not run: what a guided and an unguided step of the denoiser take."""
    from sdbench.study.cost import footprint_table

    rows = []
    for _, row in footprint_table([model], sides=sides, batches=batches, dtype=dtype).iterrows():
        figures = (row["flop"] / 1e12, row["weights_bytes"] / 1e9, row["activation_peak_bytes"] / 1e9)
        known = (f"{row['height']} x {row['width']}", f"{row['batch']}", row["step"], f"{row['rows']}")
        rows.append((*known, *(f"{x:.3g}" for x in figures)))
    headings = ("pixels", "batch", "step", "rows", "TFLOP", "weights GB", "peak activations GB")
    _print_table(headings, rows)


def _whole(option: str, text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise ValueError(f"{option} takes positive whole numbers with commas between them, not '{text}'")
    return values


@app.command()
def sensitivity(
    kind: Annotated[str, typer.Option(help="of masks: single, window, last, first or interval")] = "single",
    length: Annotated[int | None, typer.Option(help="steps of the window; a quarter of all by default")] = None,
    stride: Annotated[int, typer.Option(help="starts and lengths are multiples of it")] = 1,
    masks: Annotated[str | None, typer.Option(help="such as 1101,1011 in place of a kind: 1 is a guided step")] = None,
    max_rows: Annotated[int | None, typer.Option(help="of one evaluation; from the free memory by default")] = None,
    growth: Annotated[bool, typer.Option("--growth", help="keep how far the latents are at every step, too")] = False,
    out: Annotated[Path | None, typer.Option(help="the sweep's folder; a new one under sdbench-results/")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the sweep in --out")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the sweep in --out")] = False,
    model: Annotated[str | None, typer.Option(help="name, hub id or folder; see `sdbench models`")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="a prompt; may be given several times")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="a text file with one prompt per line")] = None,
    seeds: Annotated[str | None, typer.Option(help="with commas between them")] = None,
    num_steps: Annotated[int | None, typer.Option(help="denoising steps")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="w, above 1")] = None,
    batch: Annotated[int | None, typer.Option(help="(prompt, seed) pairs that share their calls")] = None,
    metrics: Annotated[str, typer.Option(help="with commas between them")] = "lpips",
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
    arguments: Annotated[str | None, typer.Option(help="further pipeline arguments, as a JSON object")] = None,
) -> None:
    """Show which steps need guidance: drop it at some, in every way of one kind, and compare with the guided image."""
    _quiet()
    with _one_line_errors():
        mode = _mode(resume=resume, overwrite=overwrite, out=out)
        from sdbench.study.plan import Study
        from sdbench.study.sensitivity import SweepPlan, sweep
        from sdbench.study.trial import loaded

        options = {
            "model": model,
            "prompts": prompt,
            "prompts_file": None if prompts_file is None else str(prompts_file),
            "seeds": _numbers(seeds),
            "num_steps": num_steps,
            "guidance_scale": guidance_scale,
            "batch": batch,
            "metrics": _split(metrics),
            "dtype": dtype,
            "device": device,
            "arguments": _json_object(arguments),
        }
        given = {key: value for key, value in options.items() if value is not None}
        study = Study.protocol("mini-sd", **given, variants=["cfg"], name="sensitivity")
        plan = SweepPlan(kind, length, stride, tuple(_split(masks) or ()), max_rows, growth)
        folder = out or _new_folder("sensitivity")
        try:
            found = sweep(loaded(study), study, plan, folder, mode=mode)
        except KeyboardInterrupt:
            console.print(f"\nInterrupted. What was finished is in {folder}; continue with --resume --out {folder}")
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
    console.print(f"  sensitivity.parquet one row per pair and mask, in {found.folder}", soft_wrap=True)


@app.command()
def plan(
    unguided: Annotated[str | None, typer.Option(help="numbers of unguided steps, with commas between them")] = None,
    max_lpips: Annotated[float | None, typer.Option(help="as many unguided steps as keep this LPIPS")] = None,
    saving: Annotated[
        str | None, typer.Option(help="as few unguided steps as save this share of the time: 15%")
    ] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="tuning prompts, one per line")] = None,
    held_out_file: Annotated[Path | None, typer.Option(help="other prompts, on which the plans are judged")] = None,
    pairs: Annotated[int, typer.Option(help="of mini-sd, without the files: held-out captions")] = 128,
    seeds: Annotated[str | None, typer.Option(help="with commas between them")] = None,
    metric: Annotated[str, typer.Option(help="what the search lowers, or raises where higher is better")] = "lpips",
    scales: Annotated[str | None, typer.Option(help="guidance scales to try for the steps that stay guided")] = None,
    rounds: Annotated[int, typer.Option(help="of exchanges, at most")] = 6,
    max_rows: Annotated[int | None, typer.Option(help="of one evaluation; from the free memory by default")] = None,
    out: Annotated[Path | None, typer.Option(help="the plans' folder; a new one under sdbench-results/")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the plans in --out")] = False,
    model: Annotated[str | None, typer.Option(help="name, hub id or folder; see `sdbench models`")] = None,
    num_steps: Annotated[int | None, typer.Option(help="denoising steps")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="w, above 1")] = None,
    batch: Annotated[int | None, typer.Option(help="(prompt, seed) pairs that share their calls")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
) -> None:
    """Find the steps to leave unguided, and judge them on other prompts against every simple choice of as many."""
    _quiet()
    with _one_line_errors():
        if max_lpips is not None and metric != "lpips":
            raise ValueError(f"--max-lpips bounds LPIPS, so --metric must be lpips, not {metric}")
        from sdbench.analysis.frontier import plan_table
        from sdbench.analysis.tables import summarise
        from sdbench.instruments.quality import find_metric
        from sdbench.report.figures import plan_figure
        from sdbench.report.tables import plan_text
        from sdbench.study.plan import Study
        from sdbench.study.planner import Target, plan_studies
        from sdbench.study.planner import plan as find_plans
        from sdbench.study.trial import loaded

        numbers = () if unguided is None else tuple(_whole("--unguided", unguided))
        target = Target(numbers, max_lpips, None if saving is None else _share("--saving", saving))
        options = {
            "model": model,
            "seeds": _numbers(seeds),
            "num_steps": num_steps,
            "guidance_scale": guidance_scale,
            "batch": batch,
            "dtype": dtype,
            "device": device,
        }
        given = {key: value for key, value in options.items() if value is not None}
        study = Study.protocol("mini-sd", **given, variants=["cfg"], metrics=[metric], name="plan")
        tuning, held_out = plan_studies(study, prompts_file, held_out_file, pairs=pairs)
        tried = [_positive("--scales", text) for text in _split(scales) or ()]
        folder = out or _new_folder("plan")
        mode = _mode(resume=False, overwrite=overwrite, out=out)
        limits: dict[str, Any] = {"scales": tried, "rounds": rounds, "max_rows": max_rows}
        found = find_plans(loaded(study), tuning, held_out, target, folder, metric=metric, mode=mode, **limits)
        kind, _ = find_metric(metric)
        timing = summarise(found.timing)
        table = plan_table(found.judged, kind.name, higher_is_better=bool(kind.higher_is_better), timing=timing)
        console.print(plan_text(table, kind.name))
        if "alignment" in found.judged and metric != "alignment" and found.judged["alignment"].notna().any():
            by_alignment = plan_table(found.judged, "alignment", higher_is_better=True, timing=timing)
            console.print(plan_text(by_alignment, "alignment"))
        plan_figure(table, kind.name).savefig(folder / "plan.png")
        console.print(f"Schedules (plan-K.json), judged.parquet, timing/ and plan.png are in {folder}", soft_wrap=True)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="folder of a study")],
    html: Annotated[Path | None, typer.Option(help="write a page with table, figures and images")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the table in Markdown")] = None,
    csv: Annotated[Path | None, typer.Option(help="write the summary as it is, nothing rounded")] = None,
    latex: Annotated[Path | None, typer.Option(help="write the table in LaTeX (booktabs)")] = None,
) -> None:
    """Write a study's table and its page; without an option the table is printed."""
    with _one_line_errors():
        from sdbench.analysis.tables import summarise
        from sdbench.report import tables

        summary = summarise(results)
        written = {markdown: tables.markdown, latex: tables.latex, csv: lambda frame: frame.to_csv(index=False)}
        if html is not None:
            from sdbench.records.store import read
            from sdbench.report.page import page

            html.write_text(page(read(results)), encoding="utf-8")
        for path, content in written.items():
            if path is not None:
                path.write_text(content(summary), encoding="utf-8")
        paths = [path for path in (html, markdown, csv, latex) if path is not None]
        for path in paths:
            console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", soft_wrap=True)
        if not paths:
            console.print(tables.summary_table(summary, width=console.width))
            console.print(tables.legend(summary), markup=False, highlight=False)


_Threshold = Annotated[str, typer.Option(help="the smallest change of time that matters")]
_Absolute = Annotated[bool, typer.Option("--absolute", help="compare times themselves, too: on one machine only")]
_Accept = Annotated[str | None, typer.Option(help="make the run the baseline, for this reason, whatever changed")]
_Markdown = Annotated[Path | None, typer.Option(help="write the table for a pull request")]
_Json = Annotated[Path | None, typer.Option("--json", help="write every figure")]


@app.command()
def compare(
    baseline: Annotated[Path, typer.Argument(help="folder of the study that is known to be right")],
    current: Annotated[Path, typer.Argument(help="folder of the same study, run again")],
    threshold: _Threshold = "3%",
    absolute: _Absolute = False,
    accept: _Accept = None,
    markdown: _Markdown = None,
    json_file: _Json = None,
) -> None:
    """Compare two runs of a study: exit code 1 where a figure is worse, moved or missing, 2 if they do not compare."""
    with _one_line_errors():
        bad = _compare(
            baseline, current, threshold, absolute=absolute, markdown=markdown, json_file=json_file, accept=accept
        )
    if bad:
        raise typer.Exit(1)


@app.command()
def bench(
    study: Annotated[Path | None, typer.Argument(help="a study file (TOML); without one, mini-sd's benchmark")] = None,
    model: Annotated[str | None, typer.Option(help="name, hub id or folder; see `sdbench models`")] = None,
    variants: Annotated[str | None, typer.Option(help="with commas between them; see `sdbench variants`")] = None,
    baselines: Annotated[Path, typer.Option(help="folder of the baselines, one for each study and model")] = Path(
        "results/baselines"
    ),
    out: Annotated[Path | None, typer.Option(help="the run's folder; a new one under sdbench-results/")] = None,
    threshold: _Threshold = "3%",
    absolute: _Absolute = False,
    accept: _Accept = None,
    markdown: _Markdown = None,
    json_file: _Json = None,
) -> None:
    """Run the regression benchmark and compare it with its baseline; exit codes are those of `compare`."""
    _quiet()
    with _one_line_errors():
        from sdbench.study.plan import Study

        options = {"model": model, "variants": _variants(variants)}
        given = {key: value for key, value in options.items() if value is not None}
        planned = Study.from_toml(study, **given) if study else Study.protocol("mini-sd-bench", **given)
        baseline = baselines / re.sub(r"[^\w.-]+", "-", f"{planned.name}-{planned.model}")
        if accept is None and not baseline.exists():
            raise ValueError(f"there is no baseline in {baseline}; make this run one: --accept REASON")
        folder = out or _new_folder(planned.name)
        _run(planned, str(folder), mode="new")
        bad = _compare(
            baseline, folder, threshold, absolute=absolute, markdown=markdown, json_file=json_file, accept=accept
        )
    if bad:
        raise typer.Exit(1)


def _compare(
    baseline: Path,
    current: Path,
    threshold: str,
    *,
    absolute: bool,
    accept: str | None,
    markdown: Path | None,
    json_file: Path | None,
) -> bool:
    """Print and write the comparison of two runs; whether it is bad and was not accepted."""
    from sdbench.analysis.regression import BAD, COMPARED, Limits, NotComparable, compare, differing_environment
    from sdbench.records.baselines import accept as make_baseline
    from sdbench.records.store import read
    from sdbench.report.tables import comparison_markdown, comparison_text

    limits = Limits(threshold=_share("--threshold", threshold))
    needed = COMPARED if accept is None else None
    found = read(current, columns=needed)
    first = accept is not None and not baseline.exists()
    known = found if first else read(baseline, columns=needed)
    try:
        table = compare(known, found, limits, absolute=absolute)
    except NotComparable:
        if accept is None:
            raise
        known, table = found, compare(found, found, limits)  # another study takes the baseline's place
    console.print(comparison_text(table))
    same = int((table["verdict"] == "same").sum())
    console.print(f"{same} of {len(table)} figures are the same.")
    if keys := differing_environment(known, found):
        console.print(f"Another machine or other versions ({', '.join(keys)}): absolute times do not compare.")
    if (table["verdict"] == "undecided").any():
        typer.echo("warning: too few repeats to decide every time", err=True)
    if (table["unstable"] != "").any():
        typer.echo("warning: a run was disturbed; the table says by what", err=True)
    if markdown is not None:
        markdown.write_text(comparison_markdown(table), encoding="utf-8")
    if json_file is not None:
        json_file.write_text(table.to_json(orient="records", indent=1), encoding="utf-8")
    if accept is not None:
        make_baseline(baseline, found, table, accept, at=datetime.now(UTC))
        console.print(f"{baseline} is now this run.")
    return accept is None and bool(table["verdict"].isin(BAD).any())


@app.command()
def history(
    baseline: Annotated[Path, typer.Argument(help="folder of a baseline")],
    out: Annotated[Path | None, typer.Option(help="where the picture goes; history.png by default")] = None,
) -> None:
    """List when and why a baseline was accepted, and plot its figures."""
    with _one_line_errors():
        from sdbench.records.baselines import read_history
        from sdbench.report.history import history_figure

        past = read_history(baseline)
        for accepted, reason in past[["accepted", "reason"]].drop_duplicates().itertuples(index=False):
            typer.echo(f"{accepted}  {reason}")
        path = out or Path("history.png")
        history_figure(past).savefig(path)
        typer.echo(f"plotted in {path}")


@app.command()
def rank(
    results: Annotated[Path, typer.Argument(help="folder of a study")],
    metric: Annotated[str, typer.Option(help="a metric of its images")] = "lpips",
) -> None:
    """Order a study's variants by a metric, and say which differences between them are clear."""
    with _one_line_errors():
        from sdbench.analysis.ranking import ranking
        from sdbench.analysis.tables import PAIRS
        from sdbench.instruments.quality import find_metric
        from sdbench.records.store import read
        from sdbench.report.tables import ranking_text

        kind, _ = find_metric(metric)
        found = ranking(read(results, columns=PAIRS), kind.name, higher_is_better=bool(kind.higher_is_better))
        console.print(ranking_text(found, kind.name))


@app.command()
def frontier(
    results: Annotated[Path, typer.Argument(help="folder of a study")],
    metric: Annotated[str, typer.Option(help="a metric of its images")] = "lpips",
    timing: Annotated[Path | None, typer.Option(help="folder of a study whose times count instead")] = None,
    out: Annotated[Path | None, typer.Option(help="where the picture goes; the study's folder by default")] = None,
) -> None:
    """Order a study's variants by time, and mark those that no other beats in time and quality at once."""
    _quiet()
    with _one_line_errors():
        from sdbench.analysis.frontier import frontier as ordered
        from sdbench.analysis.tables import summarise
        from sdbench.instruments.quality import find_metric
        from sdbench.report.figures import frontier_figure
        from sdbench.report.tables import frontier_markdown

        kind, _ = find_metric(metric)
        other = None if timing is None else summarise(timing)
        found = ordered(summarise(results), kind.name, higher_is_better=bool(kind.higher_is_better), timing=other)
        typer.echo(frontier_markdown(found))
        path = (out or results) / f"frontier-{kind.name}.png"
        frontier_figure(found, metric=kind.name).savefig(path)
        console.print(f"The picture is {path}", soft_wrap=True)


@app.command()
def distances(
    results: Annotated[Path, typer.Argument(help="folder of a study with its images")],
    features: Annotated[str, typer.Option(help="reader (mini-sd's) or inception (FID and KID)")] = "reader",
    reference: Annotated[Path | None, typer.Option(help="folder of images; drawn scenes for the reader's")] = None,
) -> None:
    """Compare the distribution of every variant's images with that of reference images."""
    _quiet()
    with _one_line_errors():
        from sdbench.records.store import read
        from sdbench.report.tables import distances_text
        from sdbench.study.distances import WARNING
        from sdbench.study.distances import distances as measured

        console.print(distances_text(measured(read(results), features=features, reference=reference)))
        console.print(WARNING, markup=False, highlight=False)


def _share(option: str, text: str) -> float:
    return _positive(option, text.removesuffix("%")) / 100 if text.endswith("%") else _positive(option, text)


def _positive(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError(f"{option} takes positive numbers, not '{text}'")
    return value


def _mode(*, resume: bool, overwrite: bool, out: str | Path | None) -> Mode:
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    if resume and out is None:
        raise ValueError("--resume needs --out, the folder to continue")
    return "resume" if resume else "overwrite" if overwrite else "new"


@app.command()
@functools.wraps(_distill)
def distill(**options: Any) -> None:
    """Run the command of `distill/command.py` with this module's way with errors."""
    _quiet()
    with _one_line_errors():
        try:
            _distill(**options)
        except KeyboardInterrupt:
            console.print(f"\nInterrupted. Continue with --resume --out {options['out']}")
            raise typer.Exit(INTERRUPTED) from None


@app.command()
def models() -> None:
    """List the models known by name, and the architectures that can be built without weights."""
    from sdbench.models.architectures import ARCHITECTURES
    from sdbench.models.registry import MODELS

    rows = [(spec.name, f"{spec.guidance_scale:g}", spec.meaning) for spec in MODELS.values()]
    _print_table(("model", "scale", "what it is"), rows)
    console.print("Any hub id (owner/name) or folder of a guided diffusers pipeline works too.\n")
    rows = [(a.name, f"{a.guidance_scale:g}", f"{a.source}, {a.side} px") for a in ARCHITECTURES.values()]
    _print_table(("--random-weights", "scale", "architecture"), rows)


@app.command()
def variants() -> None:
    """List the variant grammar."""
    from sdbench.variants.registry import VARIANTS

    rows = [(kind.grammar, kind.meaning, kind.source) for kind in VARIANTS.values()]
    _print_table(("variant", "what it does", "source"), rows)


@app.command()
def weights() -> None:
    """Find the network that LPIPS needs, fetch it where it is missing, and say where it came from."""
    _quiet()
    with _one_line_errors():
        from sdbench.instruments.weights import describe

        _print_table(("what", "value"), list(describe().items()))


@app.command()
def env() -> None:
    """Say what a measurement here would run on."""
    import torch  # noqa: F401 - so that the record names its threads and GPUs

    from sdbench.records.environment import environment

    rows = [
        (key, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value))
        for key, value in environment().items()
    ]
    _print_table(("what", "value"), rows)


def _print_table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _quiet() -> None:
    """Silence what torch's profiler and the loaders write past Python's logging; set before torch is imported."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


if __name__ == "__main__":
    app()
