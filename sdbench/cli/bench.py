"""`sdbench bench`: the regression benchmark, a run and its comparison in one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdbench.cli.compare import judge, terms_of
from sdbench.cli.console import command
from sdbench.cli.options import (
    Absolute,
    Accept,
    Force,
    Json,
    Markdown,
    Model,
    Out,
    Precision,
    StudyRepeats,
    Threshold,
    Undecided,
    Variants,
    compared,
)
from sdbench.cli.run import run_study
from sdbench.cli.values import new_folder, study_fields

if TYPE_CHECKING:
    from sdbench.study.study import Study

_StudyFile = Annotated[
    Path | None, typer.Argument(help="study file (TOML); by default mini-sd's benchmark")
]
_Baselines = Annotated[Path, compared(help="folder that holds the baselines")]


@command
def bench(
    study: _StudyFile = None,
    model: Model = None,
    variants: Variants = None,
    baselines: _Baselines = Path("results/baselines"),
    out: Out = None,
    threshold: Threshold = "3%",
    undecided: Undecided = "fail",
    absolute: Absolute = False,
    repeats: StudyRepeats = None,
    precision: Precision = None,
    accept: Accept = None,
    force: Force = False,
    markdown: Markdown = None,
    json_file: Json = None,
) -> None:
    """Run the regression benchmark and compare it with its baseline.

    The exit codes are those of `sdbench compare`.
    """
    from sdbench.study.study import Study

    terms = terms_of(threshold, undecided, absolute=absolute, accept=accept, force=force)
    fields = study_fields(
        {"model": model, "variants": variants, "repeats": repeats, "precision": precision}
    )
    if study is None:
        benchmark = Study.protocol("mini-sd-bench", **fields)
    else:
        benchmark = Study.from_toml(study, **fields)

    # Asked before the run, which takes minutes.
    baseline = _baseline_of(benchmark, baselines)
    if accept is None and not baseline.exists():
        raise ValueError(
            f"there is no baseline in {baseline}; --accept REASON makes this run the baseline"
        )

    folder = out or new_folder(benchmark.name)
    run_study(benchmark, str(folder), mode="new")
    judge(baseline, folder, terms, markdown=markdown, json_file=json_file)


def _baseline_of(study: Study, baselines: Path) -> Path:
    """The folder of a study's baseline; a model may be a path, so its name is made fit for one."""
    return baselines / re.sub(r"[^\w.-]+", "-", f"{study.name}-{study.model}")
