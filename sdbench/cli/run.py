"""`sdbench run`: a study from its file, a protocol or options, with its table and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdbench.cli.console import command, console, resumable
from sdbench.cli.options import (
    Arguments,
    Device,
    Dtype,
    Execution,
    GuidanceExecution,
    GuidanceScale,
    Metrics,
    Model,
    NumSteps,
    Overwrite,
    Precision,
    Prompt,
    PromptsFile,
    Resume,
    Seeds,
    StudyRepeats,
    WeightsVariant,
    compared,
    generated,
    running,
    written,
)
from sdbench.cli.values import new_folder, study_fields, write_mode

if TYPE_CHECKING:
    import pandas as pd

    from sdbench.records.store import Results
    from sdbench.study.study import Study

_StudyFile = Annotated[
    Path | None, typer.Argument(help="a study file (TOML); without one, mini-sd's own study")
]

# What is generated.
_NegativePrompt = Annotated[str | None, generated(help="of every image")]
_Height = Annotated[int | None, generated(help="pixels")]
_Width = Annotated[int | None, generated(help="pixels")]
_Output = Annotated[
    str | None, generated(help="image (video, audio), or latent to stop before decoding")
]
_RandomWeights = Annotated[
    bool | None,
    generated("--random-weights", help="build an architecture without its weights, for its cost"),
]
_SafetyChecker = Annotated[
    bool | None,
    generated("--safety-checker", help="leave it on: what it replaces has no scores"),
]

# What is compared.
_Protocol = Annotated[
    str | None, compared(help="a study that ships with sdbench; a wrong name lists them")
]
_Variants = Annotated[
    str | None,
    compared(
        help="with commas between them, instead of the study's and its controls; "
        "see `sdbench variants`"
    ),
]
_Controls = Annotated[
    bool | None,
    compared("--controls", help="add the controls: the same evaluations, spent otherwise"),
]

# How it runs.
_Batch = Annotated[int | None, running(help="(prompt, seed) pairs per call")]
_Warmups = Annotated[
    int | None, running(help="calls before them, not timed; 0 leaves memory on the CPU out")
]
_Timing = Annotated[
    str | None,
    running(help="of measured calls: lockstep (a step of each in turn) or calls (one by one)"),
]
_MemoryFormat = Annotated[str | None, running(help="of the denoiser: contiguous or channels_last")]
_Threads = Annotated[int | None, running(help="of torch on the CPU")]
_FullHash = Annotated[
    bool | None, running("--full-hash", help="name calls by SHA-256 of the weights, not by sums")
]
_Engine = Annotated[
    str, running(help="local, or ray: workers with a GPU or a share of the CPU each")
]
_Workers = Annotated[int | None, running(help="of the Ray engine; one per GPU, or two, by default")]
_Shard = Annotated[
    str | None, running(help="run only this part, such as 2/8; see `sdbench gather`")
]
_DryRun = Annotated[
    bool, running("--dry-run", help="only say how long it takes and how much memory")
]

# What is left.
_Out = Annotated[
    str | None,
    written(help="the study's folder, or a URL (s3://...); a new one under sdbench-results/"),
]
_Name = Annotated[str | None, written(help="of the study in the tables")]


@command
def run(
    study: _StudyFile = None,
    protocol: _Protocol = None,
    variants: _Variants = None,
    controls: _Controls = None,
    metrics: Metrics = None,
    model: Model = None,
    random_weights: _RandomWeights = None,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    negative_prompt: _NegativePrompt = None,
    seeds: Seeds = None,
    num_steps: NumSteps[int | None] = None,
    guidance_scale: GuidanceScale = None,
    height: _Height = None,
    width: _Width = None,
    output: _Output = None,
    arguments: Arguments = None,
    safety_checker: _SafetyChecker = None,
    batch: _Batch = None,
    repeats: StudyRepeats = None,
    precision: Precision = None,
    timing: _Timing = None,
    warmups: _Warmups = None,
    dtype: Dtype[str | None] = None,
    device: Device = None,
    weights_variant: WeightsVariant = None,
    full_hash: _FullHash = None,
    execution: Execution[str | None] = None,
    guidance_execution: GuidanceExecution = None,
    memory_format: _MemoryFormat = None,
    threads: _Threads = None,
    engine: _Engine = "local",
    workers: _Workers = None,
    shard: _Shard = None,
    dry_run: _DryRun = False,
    out: _Out = None,
    name: _Name = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Run a study: time every variant step by step, and compare its images with full guidance."""
    mode = write_mode(resume=resume, overwrite=overwrite, out=out)
    chosen = _study(study, protocol, study_fields(locals()))
    how: dict[str, Any] = {"mode": mode, "engine": engine, "workers": workers, "shard": shard}
    _print_estimate(chosen) if dry_run else _run_and_report(chosen, out, **how)


def _run_and_report(study: Study, out: str | None, **how: Any) -> None:
    """Run a study into the folder asked for, or a new one, and show what came out."""
    folder = out or str(new_folder(study.name))
    _report(run_study(study, folder, times_known=_print_times, **how), folder)


def _print_times(folder: Path) -> None:
    """The table of a study whose last controls, which need no time, have still to run."""
    from sdbench.analysis.tables import SUMMARY
    from sdbench.records.store import read

    results = read(folder, columns=SUMMARY)
    if (results.runs["status"] == "ok").any():
        _print_summary(results)
        console.print("All times are taken. What follows makes images only.\n")


def _study(file: Path | None, protocol: str | None, fields: dict[str, Any]) -> Study:
    """The study of a file, of a protocol, or mini-sd's own, with the fields that were given."""
    from sdbench.study.study import Study

    if file is not None and protocol is not None:
        raise ValueError("give a study file or --protocol, not both")
    if file is not None:
        return Study.from_toml(file, **fields)
    return Study.protocol(protocol or "mini-sd", **fields)


def run_study(study: Study, folder: str, **how: Any) -> Results:
    """Run a study; of its tables no more is read than the report shows."""
    from sdbench.analysis.tables import SUMMARY
    from sdbench.records.store import read
    from sdbench.study.runner import record

    # What the summary does not need but the pictures do.
    shown = {
        "steps": (*SUMMARY["steps"], "variant", "guidance_cosine"),
        "images": (*SUMMARY["images"], "prompt", "path"),
    }
    with resumable(folder):
        return read(record(study, folder, **how), columns=SUMMARY | shown)


def _report(results: Results, place: str) -> None:
    """The table, the pictures and the failures.

    Raises:
        typer.Exit: code 1 where a call failed.
    """
    # Without a call that ended well there is nothing to show but the failures.
    if (results.runs["status"] == "ok").any():
        summary = _print_summary(results)
        _print_files(place, _draw(results, summary, place))

    failed = results.runs.loc[results.runs["status"] == "failed", ["variant", "message"]]
    for variant, message in failed.drop_duplicates().itertuples(index=False):
        typer.echo(f"failed: {variant}: {message}", err=True)
    if len(failed):
        raise typer.Exit(1)


def _print_summary(results: Results) -> pd.DataFrame:
    """The table with its legend, why a variant could not run, and what is to be noted."""
    from sdbench.analysis.calls import uncounted
    from sdbench.analysis.ended import ended
    from sdbench.analysis.tables import summarise
    from sdbench.report.tables import legend, remarks, summary_table

    summary = summarise(results)
    console.print(summary_table(summary, width=console.width))
    for reason in uncounted(results):
        console.print(f"work not counted: {reason}", markup=False, highlight=False)
    unsupported = summary.loc[summary["unsupported"] != "", ["variant", "unsupported"]]
    for variant, reason in unsupported.itertuples(index=False):
        console.print(f"unsupported: {variant}: {reason}", markup=False, highlight=False)
    runs = results.runs
    reason = ended(results.study.get("repeats"), summary)
    for line in (*remarks(runs[runs["status"] == "ok"]), *filter(None, [reason])):
        console.print(line, markup=False, highlight=False)
    console.print(legend(summary), markup=False, highlight=False)
    return summary


def _draw(results: Results, summary: pd.DataFrame, place: str) -> dict[str, str]:
    """Write the pictures next to the tables; what each shows, by its file."""
    from sdbench.analysis.tables import step_profile
    from sdbench.records.remote import Remote
    from sdbench.report.figures import frontier_figure, image_grid, step_figure

    figures = {"steps.png": step_figure(step_profile(results))}
    meanings = {"steps.png": "time of every step, and how far guidance still moves the prediction"}
    if len(results.images):
        pairs = results.images[["prompt_id", "seed"]].drop_duplicates().head(8)
        shown = list(pairs.itertuples(index=False, name=None))
        figures["grid.png"] = image_grid(results, pairs=shown)
        what = "first, middle and last frames" if "frames" in results.images else "the images"
        meanings["grid.png"] = f"{what}: one row per prompt, one column per variant"
        figures["frontier.png"] = frontier_figure(summary)
        meanings["frontier.png"] = "time saved against distance to the baseline's image"

    for name, figure in figures.items():
        figure.savefig(results.folder / name)
    # A study at a URL was read from a copy of it.
    if remote := Remote.of(place):
        remote.put(results.folder, figures)
    return meanings


def _print_files(place: str, pictures: dict[str, str]) -> None:
    tables = {"runs.parquet, steps.parquet, images.parquet": "one row per call, step and image"}
    console.print(f"\nTables and pictures are in {place}:", soft_wrap=True)
    for name, meaning in (tables | pictures).items():
        console.print(f"  {name:13} {meaning}")


def _print_estimate(study: Study) -> None:
    from sdbench.study.estimate import estimate

    expected = estimate(study)
    calls, minutes = f"{expected.calls}", f"{expected.seconds / 60:.1f}"
    if expected.most_calls > expected.calls:
        calls += f" to {expected.most_calls}"
        minutes += f" to {expected.most_seconds / 60:.1f}"
    console.print(
        f"{calls} calls, about {minutes} minutes of computing here, "
        f"peak memory of the process about {expected.rss_peak_bytes / 1e9:.1f} GB "
        "(not counting image metrics)"
    )
    if expected.uncounted:
        console.print(f"work not counted: {expected.uncounted}", markup=False, highlight=False)
