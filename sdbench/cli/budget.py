"""`sdbench budget`: how to spend what an image may cost, searched and judged on other prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sdbench.cli.console import command, console
from sdbench.cli.options import (
    Arguments,
    Device,
    Dtype,
    GuidanceScale,
    HeldOutFile,
    HeldOutPairs,
    MaxRows,
    Model,
    NumSteps,
    Out,
    Overwrite,
    Resume,
    Seeds,
    SharedBatch,
    TuningFile,
    WeightsVariant,
    compared,
    running,
)
from sdbench.cli.values import new_folder, positive, share, split, study_fields, whole, write_mode
from sdbench.records.names import BASELINE

if TYPE_CHECKING:
    import pandas as pd

    from sdbench.experiments.budget import Objective
    from sdbench.experiments.spending import Budget
    from sdbench.models.pipeline import Pipeline
    from sdbench.study.generation import Generation

# What an image may cost: one of these three.
_Nfe = Annotated[str | None, compared(help="denoiser evaluations per image, separated by commas")]
_Seconds = Annotated[str | None, compared(help="seconds per image, separated by commas")]
_Saving = Annotated[
    str | None,
    compared(help="shares of the baseline's time to save, such as 60%, separated by commas"),
]

# How it may be spent.
_Methods = Annotated[
    str | None,
    compared(
        help="steps (fewer), mask (fewer guided), scale, cached, and any variant, in as many steps "
        "as fit; by default these, unguided, and the model's own lora"
    ),
]
_Schedulers = Annotated[
    str | None,
    compared(help="further schedulers to try, by the names of scheduler:NAME"),
]
_Metric = Annotated[
    str, compared(help="what the search lowers; of several each may have a weight: lpips=1,flip=2")
]
_Reference = Annotated[
    str, compared(help="the variant that images are compared with, such as cfg@200")
]
_MostSteps = Annotated[int, running(help="most steps of any loop that is tried")]


@command
def budget(
    nfe: _Nfe = None,
    seconds: _Seconds = None,
    saving: _Saving = None,
    methods: _Methods = None,
    schedulers: _Schedulers = None,
    metric: _Metric = "lpips",
    reference: _Reference = BASELINE,
    model: Model = None,
    tuning_file: TuningFile = None,
    held_out_file: HeldOutFile = None,
    pairs: HeldOutPairs = 128,
    seeds: Seeds = None,
    num_steps: NumSteps[int | None] = None,
    guidance_scale: GuidanceScale = None,
    arguments: Arguments = None,
    most_steps: _MostSteps = 100,
    batch: SharedBatch = None,
    max_rows: MaxRows = None,
    dtype: Dtype[str | None] = None,
    device: Device = None,
    weights_variant: WeightsVariant = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Find the best way to spend what an image may cost, and judge it on other prompts.

    Fewer steps, fewer guided steps, another scale, a student, a cache, another scheduler.
    """
    _search_and_report(locals())


def _search_and_report(options: dict[str, Any]) -> None:
    """Search, judge and show what all the options describe."""
    mode = write_mode(resume=options["resume"], overwrite=options["overwrite"], out=options["out"])
    if mode == "resume" and options["saving"] is not None:
        raise ValueError("--saving measures the seconds anew: resume with --seconds or --nfe")
    objective = _objective(options["metric"])
    from sdbench.experiments.budget import spend
    from sdbench.experiments.planning import tuning_and_held_out
    from sdbench.experiments.spending import default_methods
    from sdbench.study.check import loaded
    from sdbench.study.study import Study

    fields = study_fields(options) | {"reference": BASELINE, "metrics": list(objective.metrics)}
    study = Study.protocol("mini-sd", **fields, variants=[BASELINE])
    files = (options["tuning_file"], options["held_out_file"])
    sets = tuning_and_held_out(study.generation, *files, pairs=options["pairs"])
    pipe = loaded(study)
    methods = split(options["methods"]) or default_methods(pipe)
    folder = options["out"] or new_folder("budget")
    table = spend(
        pipe,
        sets.tuning,
        sets.held_out,
        _budgets(options, pipe, sets.tuning, methods),
        folder,
        objective=objective,
        methods=methods,
        schedulers=[None, *(split(options["schedulers"]) or [])],
        reference=options["reference"],
        metrics=sets.metrics,
        max_rows=options["max_rows"],
        mode=mode,
    )
    _report(table, objective, options["reference"], folder)


def _objective(text: str) -> Objective:
    """The metrics and their weights."""
    from sdbench.experiments.budget import Objective

    weights = {}
    for part in split(text) or ():
        name, _, weight = part.partition("=")
        weights[name] = positive("--metric", weight) if weight else 1.0
    if not weights:
        raise ValueError("--metric names what the search lowers, such as lpips")
    return Objective(weights)


def _budgets(
    options: dict[str, Any], pipe: Pipeline, tuning: Generation, methods: list[str]
) -> list[Budget]:
    """What an image may cost, in evaluations or in seconds."""
    from sdbench.experiments.spending import Budget, evaluations
    from sdbench.experiments.spending_time import step_times
    from sdbench.variants.grammar import parse

    given = [name for name in ("nfe", "seconds", "saving") if options[name] is not None]
    if len(given) != 1:
        raise ValueError("give one of --nfe, --seconds and --saving: what an image may cost")
    (name,) = given
    most = options["most_steps"]
    if name == "nfe":
        limits = whole("--nfe", options["nfe"])
        return [Budget(limit, "nfe", evaluations, most) for limit in limits]

    asked = _seconds_or_shares(name, options[name])
    times = step_times(pipe, tuning, methods)
    if name == "saving":
        whole_s = times.seconds(parse(BASELINE), tuning.num_steps)
        asked = [(1 - saved) * whole_s for saved in asked]
    return [Budget(limit, "seconds", times.seconds, most) for limit in asked]


def _seconds_or_shares(name: str, text: str) -> list[float]:
    """The numbers behind `--seconds` or `--saving`; a share is below 1."""
    read = share if name == "saving" else positive
    values = [read(f"--{name}", part) for part in text.split(",")]
    if name == "saving" and max(values) >= 1:
        raise ValueError(f"--saving takes shares below 100%, not {text}")
    return values


def _report(table: pd.DataFrame, objective: Objective, reference: str, folder: Path) -> None:
    """The tables, the words, the picture and the files."""
    from sdbench.analysis.spending import leading, spending_table
    from sdbench.instruments.quality import find_metric
    from sdbench.records.files import read_json
    from sdbench.report.figures import spending_figure
    from sdbench.report.tables import spending_text
    from sdbench.variants.grammar import parse

    directions = {find_metric(name)[0].name: find_metric(name)[0] for name in objective.metrics}
    directions |= {"alignment": find_metric("alignment")[0]}  # empty where nothing reads it
    tables = {}
    for name, kind in directions.items():
        if table[name].isna().all():
            continue
        higher = bool(kind.higher_is_better)
        tables[name] = spending_table(table, name, higher_is_better=higher)
        console.print(spending_text(tables[name], name))
        for line in leading(tables[name], name, higher_is_better=higher):
            console.print(line, soft_wrap=True, highlight=False)
    for way, why in read_json(folder / "study.json")["unsupported"].items():
        console.print(f"unsupported: {way}: {why}", soft_wrap=True, highlight=False)
    figure = spending_figure(tables, reference=parse(reference).name)
    figure.savefig(folder / "budget.png")
    console.print(
        f"Recipes (recipe-LIMIT.json), spending.parquet and budget.png are in {folder}",
        soft_wrap=True,
    )
