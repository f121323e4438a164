"""Commands that run a study, or put its parts together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdbench.cli.console import INTERRUPTED, app, console, one_line_errors, quiet
from sdbench.cli.options import json_object, new_folder, seed_list, split, variant_names, write_mode

if TYPE_CHECKING:
    from sdbench.records.store import Results
    from sdbench.study.study import Study


@app.command()
def run(
    study: Annotated[
        Path | None, typer.Argument(help="a study file (TOML); without one, mini-sd's own study")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="a study that ships with sdbench; a wrong name lists them")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="the study's folder, or a URL (s3://...); a new one under sdbench-results/"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the study in --out")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the study in --out")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only say how long it takes and how much memory")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="name, hub id or folder; see `sdbench models`")
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            help="with commas between them, in place of the study's and its controls; see `sdbench variants`"
        ),
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
    batch: Annotated[int | None, typer.Option(help="(prompt, seed) pairs per call")] = None,
    repeats: Annotated[
        int | None, typer.Option(help="measured calls per variant; at least 6 for intervals")
    ] = None,
    warmups: Annotated[
        int | None, typer.Option(help="calls before them, marked and not averaged")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="with commas between them")] = None,
    height: Annotated[int | None, typer.Option(help="pixels")] = None,
    width: Annotated[int | None, typer.Option(help="pixels")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda")] = None,
    output: Annotated[
        str | None, typer.Option(help="image, or latent to stop before decoding")
    ] = None,
    execution: Annotated[
        str | None, typer.Option(help="of the denoiser: eager, compile or cudagraph")
    ] = None,
    guidance_execution: Annotated[
        str | None, typer.Option(help="of a guided step: batched or sequential")
    ] = None,
    memory_format: Annotated[
        str | None, typer.Option(help="of the denoiser: contiguous or channels_last")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="of torch on the CPU")] = None,
    random_weights: Annotated[
        bool | None,
        typer.Option(
            "--random-weights", help="build an architecture without its weights, to see its cost"
        ),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="of every image")] = None,
    arguments: Annotated[
        str | None, typer.Option(help="further pipeline arguments, as a JSON object")
    ] = None,
    controls: Annotated[
        bool | None,
        typer.Option("--controls", help="add the controls: as many evaluations, spent otherwise"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="of the study in the tables")] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: workers with a GPU or a share of the CPU each")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="of the Ray engine; one per GPU, or two, by default")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="run only this part, such as 2/8; see `sdbench gather`")
    ] = None,
) -> None:
    """Run a study: every variant on every prompt and seed, timed step by step and compared with full guidance."""
    quiet()
    with one_line_errors():
        mode = write_mode(resume=resume, overwrite=overwrite, out=out)
        from sdbench.study.study import Study

        options = {
            "model": model,
            "variants": variant_names(variants),
            "prompts": prompt,
            "prompts_file": None if prompts_file is None else str(prompts_file),
            "seeds": seed_list(seeds),
            "num_steps": num_steps,
            "guidance_scale": guidance_scale,
            "batch": batch,
            "repeats": repeats,
            "warmups": warmups,
            "metrics": split(metrics),
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
            "arguments": json_object(arguments),
            "controls": controls,
            "name": name,
        }
        given = {key: value for key, value in options.items() if value is not None}
        if study is not None and protocol is not None:
            raise ValueError("give a study file or --protocol, not both")
        planned = (
            Study.from_toml(study, **given)
            if study
            else Study.protocol(protocol or "mini-sd", **given)
        )
        if dry_run:
            _say_estimate(planned)
            return
        folder = out or str(new_folder(planned.name))
        results = run_study(planned, folder, mode=mode, engine=engine, workers=workers, shard=shard)
        _report(results, folder)
    failed = results.runs[results.runs["status"] == "failed"]
    if len(failed):
        for variant, message in (
            failed[["variant", "message"]].drop_duplicates().itertuples(index=False)
        ):
            typer.echo(f"failed: {variant}: {message}", err=True)
        raise typer.Exit(1)


def run_study(planned: Study, folder: str, **how: Any) -> Results:
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
        console.print(
            f"\nInterrupted. What was finished is in {folder}; continue with --resume --out {folder}"
        )
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
    for variant, reason in summary.loc[
        summary["unsupported"] != "", ["variant", "unsupported"]
    ].itertuples(index=False):
        console.print(f"unsupported: {variant}: {reason}", markup=False, highlight=False)
    console.print(legend(summary), markup=False, highlight=False)
    figures = {"steps.png": step_figure(step_profile(results))}
    meaning = {
        "runs.parquet, steps.parquet, images.parquet": "one row per call, step and image",
        "steps.png": "time of every step, and how far guidance still moves the prediction",
    }
    if len(results.images):
        pairs = results.images[["prompt_id", "seed"]].drop_duplicates().head(8)
        figures["grid.png"] = image_grid(
            results, pairs=list(pairs.itertuples(index=False, name=None))
        )
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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the study in OUT")
    ] = False,
) -> None:
    """Put together what `sdbench run --shard` left in several folders."""
    quiet()
    with one_line_errors():
        from sdbench.study.shards import gather as gathered

        results = gathered(out, shards, mode=write_mode(resume=False, overwrite=overwrite, out=out))
        console.print(
            f"{len(results.runs)} calls of {len(shards)} shards are in {out}", soft_wrap=True
        )
