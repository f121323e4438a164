"""`sdbench run`: a study from its file, a protocol or options, with its table and pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdbench.cli.console import command, console, print_estimate, print_summary, resumable
from sdbench.cli.differing import print_differing_within
from sdbench.cli.options import (
    Arguments,
    Device,
    Dtype,
    Execution,
    GuidanceExecution,
    GuidanceScale,
    Metrics,
    Model,
    Overwrite,
    Precision,
    Prompt,
    PromptsFile,
    Resume,
    Seeds,
    StudyRepeats,
    WeightsVariant,
    Wide,
    compared,
    generated,
    running,
    written,
)
from sdbench.cli.pictures import draw, print_files
from sdbench.cli.values import new_folder, study_fields, write_mode

if TYPE_CHECKING:
    import pandas as pd

    from sdbench.records.store import Results
    from sdbench.study.study import Study

_StudyFile = Annotated[
    Path | None, typer.Argument(help="study file (TOML); by default mini-sd's own study")
]

# What is generated.
_NegativePrompt = Annotated[str | None, generated(help="negative prompt of every image")]
_Height = Annotated[int | None, generated(help="image height in pixels")]
_Width = Annotated[int | None, generated(help="image width in pixels")]
_Output = Annotated[
    str | None,
    generated(help="what a call makes: image, video, audio, or latent (nothing is decoded)"),
]
_RandomWeights = Annotated[
    bool | None,
    generated("--random-weights", help="build an architecture with random weights"),
]
_SafetyChecker = Annotated[
    bool | None,
    generated("--safety-checker", help="keep it; images that it replaces get no scores"),
]

_NumSteps = Annotated[
    str | None,
    generated(help="denoising steps; of several with commas, all variants run in each number"),
]

# What is compared.
_Protocol = Annotated[
    str | None, compared(help="a study that ships with sdbench; an unknown name lists all")
]
_Variants = Annotated[
    str | None,
    compared(
        help="variants, separated by commas, instead of the study's own and its controls; "
        "see `sdbench variants`"
    ),
]
_Reference = Annotated[
    str | None, compared(help="the variant that images are compared with, such as cfg@200")
]
_Controls = Annotated[
    bool | None,
    compared("--controls", help="add controls: other ways to spend the same evaluations"),
]

# How it runs.
_Batch = Annotated[int | None, running(help="(prompt, seed) pairs per call")]
_Warmups = Annotated[
    int | None,
    running(help="untimed calls per variant, before the others; memory on the CPU needs one"),
]
_Timing = Annotated[
    str | None,
    running(help="lockstep: calls advance one step each in turn; calls: one after another"),
]
_MemoryFormat = Annotated[
    str | None, running(help="memory format of the denoiser: contiguous or channels_last")
]
_Threads = Annotated[int | None, running(help="number of torch's threads on the CPU")]
_FullHash = Annotated[
    bool | None,
    running("--full-hash", help="identify weights by SHA-256 instead of the sum of their bytes"),
]
_Engine = Annotated[str, running(help="local, or ray: each worker has a GPU or a share of the CPU")]
_Workers = Annotated[int | None, running(help="most Ray workers; by default one per GPU")]
_Shard = Annotated[
    str | None, running(help="run one part of the study, such as 2/8; see `sdbench gather`")
]
_Quick = Annotated[
    bool, compared("--quick", help="a short try-out of mini-sd, too small for results")
]
_DryRun = Annotated[
    bool, running("--dry-run", help="print the expected time and memory, and do not run")
]

# What is left.
_Out = Annotated[
    str | None,
    written(help="folder or URL (s3://...) of the study; by default new in sdbench-results/"),
]
_Name = Annotated[str | None, written(help="name of the study in the tables")]
_Trace = Annotated[
    Path | None,
    written(help="folder that gets a trace of one call per variant, for Perfetto; not timed"),
]


DEFAULT = "mini-sd"
QUICK = "mini-sd-quick"


@command
def run(
    study: _StudyFile = None,
    protocol: _Protocol = None,
    quick: _Quick = False,
    variants: _Variants = None,
    controls: _Controls = None,
    reference: _Reference = None,
    metrics: Metrics = None,
    model: Model = None,
    random_weights: _RandomWeights = None,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    negative_prompt: _NegativePrompt = None,
    seeds: Seeds = None,
    num_steps: _NumSteps = None,
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
    wide: Wide = False,
    trace: _Trace = None,
) -> None:
    """Run a study: time every variant, and compare its images with full guidance."""
    _start(_protocol(study, protocol, model, quick=quick), locals())


def _start(protocol: str | None, options: dict[str, Any]) -> None:
    """Run the study that all the options describe, or say what it would take."""
    study = _study(options["study"], protocol, study_fields(options))
    if options["dry_run"]:
        print_estimate(study)
    else:
        _run_and_report(study, **_ways(options))
    if options["trace"] is not None and not options["dry_run"]:
        _print_traces(study, options["trace"])


def _print_traces(study: Study, folder: Path) -> None:
    """Write the traces, once everything is timed."""
    from sdbench.study.traces import write_traces

    files = write_traces(study, folder)
    console.print(
        f"Traces of {len(files)} variants are in {folder}: open them at ui.perfetto.dev",
        soft_wrap=True,
    )


def _ways(options: dict[str, Any]) -> dict[str, Any]:
    """How the study runs, of all options: its folder, where its calls run, what is printed."""
    mode = write_mode(**{name: options[name] for name in ("resume", "overwrite", "out")})
    kept = ("out", "wide", "engine", "workers", "shard")
    return {"mode": mode} | {name: options[name] for name in kept}


def _run_and_report(study: Study, out: str | None, *, wide: bool, **how: Any) -> None:
    """Run a study into the folder asked for, or a new one, and show what came out."""
    if how["mode"] != "resume" and study == _study(None, DEFAULT, {}):
        print_estimate(study)
        console.print("A try-out of one minute: sdbench run --quick\n", highlight=False)
    folder = out or str(new_folder(study.name))
    times_known = partial(_print_times, wide=wide)
    _report(run_study(study, folder, times_known=times_known, **how), folder, wide=wide)


def _print_times(folder: Path, *, wide: bool) -> None:
    """The table of a study whose last controls, which need no time, have still to run."""
    from sdbench.analysis.tables import SUMMARY
    from sdbench.records.store import read

    results = read(folder, columns=SUMMARY)
    if (results.runs["status"] == "ok").any():
        _print_summary(results, wide=wide)
        console.print("All times are taken. What follows makes images only.\n")


def _protocol(
    file: Path | None, protocol: str | None, model: str | None, *, quick: bool
) -> str | None:
    """The protocol asked for; without any an embedded model's own; None for a study file."""
    if file is not None and protocol is not None:
        raise ValueError("give a study file or --protocol, not both")
    if quick and (file is not None or protocol is not None):
        raise ValueError("--quick is a study by itself: leave out the study file and --protocol")
    if file is not None:
        return None
    return QUICK if quick else protocol or own_protocol(model)


def own_protocol(model: str | None) -> str:
    """The default study of an embedded model has its name; other models begin with mini-sd's."""
    from sdbench.models.grammars import GRAMMARS

    return model if model is not None and model in GRAMMARS else DEFAULT


def _study(file: Path | None, protocol: str | None, fields: dict[str, Any]) -> Study:
    """The study of a file or of a protocol, with the fields that were given."""
    from sdbench.study.study import Study

    if protocol is not None:
        _require_prompts(protocol, fields)
        return Study.protocol(protocol, **fields)
    assert file is not None
    return Study.from_toml(file, **fields)


def _require_prompts(protocol: str, fields: dict[str, Any]) -> None:
    """Refuse a model that brings no captions with those of mini-sd, which say nothing of it.

    With random weights only times count, and for these any prompt does.
    """
    from sdbench.models.grammars import GRAMMARS

    model = fields.get("model", DEFAULT)
    given = fields.keys() & {"prompts", "prompts_file", "random_weights"}
    if protocol in (DEFAULT, QUICK) and model not in GRAMMARS and not given:
        raise ValueError(
            f"--model {model} needs --prompt or --prompts-file: "
            f"only {' and '.join(GRAMMARS)} bring their own prompts"
        )


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


def _report(results: Results, place: str, *, wide: bool) -> None:
    """The table, the pictures and the failures.

    Raises:
        typer.Exit: code 1 where a call failed.
    """
    # Without a call that ended well there is nothing to show but the failures.
    if (results.runs["status"] == "ok").any():
        summary = _print_summary(results, wide=wide)
        print_files(place, draw(results, summary, place))

    failed = results.runs.loc[results.runs["status"] == "failed", ["variant", "message"]]
    for variant, message in failed.drop_duplicates().itertuples(index=False):
        typer.echo(f"failed: {variant}: {message}", err=True)
    if len(failed):
        raise typer.Exit(1)


def _print_summary(results: Results, *, wide: bool) -> pd.DataFrame:
    """What was found, in words and as a table; its legend, and what is to be noted."""
    from sdbench.analysis.calls import uncounted
    from sdbench.analysis.ended import ended
    from sdbench.analysis.tables import summarise
    from sdbench.report.tables import legend, remarks

    summary = summarise(results)
    print_summary(summary, wide=wide)
    print_differing_within(results)
    for reason in uncounted(results):
        console.print(f"work not counted: {reason}", markup=False, highlight=False)
    unsupported = summary.loc[summary["unsupported"] != "", ["variant", "unsupported"]]
    for variant, reason in unsupported.itertuples(index=False):
        console.print(f"unsupported: {variant}: {reason}", markup=False, highlight=False)
    runs = results.runs
    reason = ended(results.study.get("repeats"), summary)
    for line in (*remarks(runs[runs["status"] == "ok"]), *filter(None, [reason])):
        console.print(line, markup=False, highlight=False)
    console.print(legend(summary, wide=wide), markup=False, highlight=False)
    return summary
