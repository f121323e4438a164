"""Runs a study: what can be checked is checked, an engine runs the calls, images are scored.

The order of the calls is in `units.py`, what is checked in `check.py`, a call under its probes in
`local.py`. What its figures mean is in `instruments`, the tables are in `records`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from sdbench.instruments.quality import provenance
from sdbench.instruments.steps import GUIDANCE_SPACE
from sdbench.models.pipeline import Pipeline
from sdbench.models.random_weights import has_random_weights
from sdbench.records.names import BASELINE
from sdbench.records.remote import Remote
from sdbench.records.results import read_known
from sdbench.records.schema import empty, frame
from sdbench.records.store import Mode, Results, StudyFolder, existing_study, read
from sdbench.study.check import loaded, loop_length, prepare
from sdbench.study.fields import digest
from sdbench.study.images import save, scored
from sdbench.study.known import known_answers, known_units, placed
from sdbench.study.local import Outcome, Worker, observe
from sdbench.study.progress import progress_bar
from sdbench.study.study import Study
from sdbench.study.tuning import constant_scales, tunable, tuning_rows, with_scales
from sdbench.study.units import Shard, Unit, parse_shard, units
from sdbench.variants.grammar import parse


class Engine(Protocol):
    """Where a study's calls run."""

    study: Study
    """With all its controls."""
    environment: dict[str, Any]
    """Of the first place that was ready."""
    pipeline: dict[str, str]
    """What `identity` says of the pipeline."""

    def outcomes(
        self, calls: Sequence[Unit], begun: Callable[[Unit], None]
    ) -> Iterator[tuple[Unit, Outcome]]:
        """Run calls, in any order; `begun` gets each when it starts. The caller writes."""
        ...


def run(
    study: Study,
    out: str | Path | None = None,
    *,
    pipe: Pipeline | None = None,
    mode: Mode = "new",
    engine: str = "local",
    workers: int | None = None,
    shard: str | None = None,
) -> Results:
    """Run a study and return its tables.

    Nothing is written before the model, the metrics and every variant's schedule are known to fit.
    Afterwards each finished call is kept: an interrupted study is readable, and `mode="resume"`
    runs what is missing.

    Args:
        study: what to run.
        out: the study's folder, or a URL of fsspec's such as `s3://bucket/prefix`; a temporary
            folder when not given.
        pipe: a pipeline to use instead of `study.model`, which then only names it.
        mode: "new", "resume" or "overwrite", for a folder that holds a study already.
        engine: "local" runs one call after another in this process; "ray" on workers (`ray.py`),
            each with a GPU or a share of the CPU. With one repeat calls run side by side; with
            more, which are for timing, each has its device to itself.
        workers: of the Ray engine, at most; by default one per GPU, or two per node without.
        shard: run only a part of the study, such as "2/8"; `gather` puts the parts together.

    Returns:
        The results; a call that failed is a row with `status` "failed". So are the calls of a
        variant that changed nothing (as many evaluations as the baseline, and the same images). A
        variant that cannot run on this pipeline is a row with `status` "unsupported" and the
        reason. Of a URL they lie in a temporary folder, too.

    Raises:
        ValueError: anything that cannot run, before the first image; a folder that does not fit the
            mode, or holds calls that this version of sdbench does not make.
    """
    return read(
        record(study, out, pipe=pipe, mode=mode, engine=engine, workers=workers, shard=shard)
    )


def record(
    study: Study,
    out: str | Path | None = None,
    *,
    pipe: Pipeline | None = None,
    mode: Mode = "new",
    engine: str = "local",
    workers: int | None = None,
    shard: str | None = None,
) -> Path:
    """Run a study as `run` does, and return its folder: its tables may be large."""
    if pipe is not None and has_random_weights(pipe):
        study = replace(study, random_weights=True)
    part = None if shard is None else parse_shard(shard)
    units(study, part)  # may refuse, and costs nothing
    quality = provenance(study.metrics or ())
    out = tempfile.mkdtemp(prefix="sdbench-") if out is None else out
    stored = _stored_scales(out) if mode == "resume" and study.controls else []
    study = with_scales(study, stored)

    with ExitStack() as open_:
        # The engine comes before the folder, as it may refuse.
        opened = open_.enter_context(_opened(engine, study, pipe, workers, tune=not stored))
        calls = units(opened.study, part, pipeline=digest(opened.pipeline))
        settings = opened.study.as_json() | {"pipeline": opened.pipeline}
        settings |= {"quality": quality, "guidance_space": GUIDANCE_SPACE}
        if part is not None:
            settings["shard"] = str(part)
        creating = StudyFolder.create(out, settings, environment=opened.environment, mode=mode)
        folder = open_.enter_context(creating)

        _require_expected(folder, calls, out)
        _forget_known_answers(folder, calls)
        try:
            _run_missing(folder, opened, calls)
        finally:
            folder.compact()
        _judge(folder, opened.study, is_whole=part is None)
        if read_known(folder.path).empty:
            _add_known_answers(folder, opened, part)
        return folder.path


def _judge(folder: StudyFolder, study: Study, *, is_whole: bool) -> None:
    """Mark the calls of variants that did nothing, and score the images."""
    runs = folder.read("runs")["runs"]
    if is_whole:  # what a variant did is known when all of the study ran
        runs = inactive_failed(runs)
        folder.rewrite("runs", runs)
    if study.output == "image":
        images = folder.read("runs", "images")["images"]
        folder.rewrite("images", scored(images, runs, study, folder.path))


def _forget_known_answers(folder: StudyFolder, calls: list[Unit]) -> None:
    """Empty their table where a call of the baseline is to run: they are of its images."""
    finished = folder.finished()
    is_missing = any(unit.variant.is_baseline and unit.id not in finished for unit in calls)
    if is_missing and not read_known(folder.path).empty:
        folder.rewrite("known", empty("known"))


def _add_known_answers(folder: StudyFolder, engine: Engine, part: Shard | None) -> None:
    """What the metrics say of images that are known to be bad, or as good as the baseline's."""
    study = engine.study
    if study.output != "image" or not study.metrics:
        return
    further = known_units(study, part, pipeline=digest(engine.pipeline))
    made = placed(
        {
            answer: list(engine.outcomes(calls, lambda unit: None))
            for answer, calls in further.items()
        }
    )
    tables = folder.read("runs", "images")
    answers = known_answers(
        tables["images"],
        tables["runs"],
        folder.path,
        metrics=study.metrics,
        seeds=study.seeds,
        made=made,
    )
    folder.rewrite("known", answers)


def _stored_scales(out: str | Path) -> list[float]:
    """The constant scales of a study in a local folder; elsewhere they are found again."""
    stored = None if Remote.of(out) else existing_study(Path(out))
    names = stored["variants"] if stored and isinstance(stored.get("variants"), list) else []
    return constant_scales(name for name in names if isinstance(name, str))


def _opened(
    engine: str, study: Study, pipe: Pipeline | None, workers: int | None, *, tune: bool
) -> AbstractContextManager[Engine]:
    if engine == "ray":
        if pipe is not None:
            raise ValueError(
                "a pipeline object cannot be sent to Ray's workers: name the model in the study"
            )
        from sdbench.study.ray import cluster

        return cluster(study, workers, tune=tune)
    if engine != "local":
        raise ValueError(f"unknown engine '{engine}'; there are: local, ray")
    if workers is not None:
        raise ValueError("the local engine has no workers; engine 'ray' has")
    return Worker(study, pipe, tune=tune)


def _require_expected(folder: StudyFolder, calls: list[Unit], out: str | Path) -> None:
    """Refuse a folder with calls of another study: both would count pairs and repeats twice."""
    strange = folder.recorded() - {unit.id for unit in calls}
    if strange:
        raise ValueError(
            f"{out} holds {len(strange)} calls that this study does not make now: another version "
            f"of sdbench than {version('sdbench')} made them, or a file that a variant names has "
            "changed; --overwrite runs all again"
        )


def _run_missing(folder: StudyFolder, engine: Engine, calls: list[Unit]) -> None:
    """Run what is not finished, and record each call as it comes."""
    finished = folder.finished()
    missing = [unit for unit in calls if unit.id not in finished]
    with progress_bar() as progress:
        done = len(calls) - len(missing)
        task = progress.add_task("running", total=len(calls), completed=done, what="")

        def begun(unit: Unit) -> None:
            progress.update(task, what=unit.variant.name)

        for unit, outcome in engine.outcomes(missing, begun):
            _record(folder, unit, outcome)
            progress.advance(task)


def _record(folder: StudyFolder, unit: Unit, outcome: Outcome) -> None:
    """Write the rows of a call."""
    identity = {
        "unit": unit.id,
        "variant": unit.variant.name,
        "repeat": unit.repeat,
        "phase": unit.phase,
    }
    settings = {
        "study": unit.study.name,
        "model": unit.study.model,
        "num_steps": unit.call.num_steps,
        "guidance_scale": unit.call.guidance_scale,
        "batch": len(unit.pairs),
        "environment": folder.add_environment(outcome.environment),
    }
    images = (
        [] if outcome.images is None else save(folder.path, unit, outcome.images, outcome.flagged)
    )
    tables = {
        "runs": [identity | settings | outcome.run],
        "steps": [identity | row for row in outcome.steps],
        "images": images,
    }
    folder.add(unit.id, **{table: frame(table, rows) for table, rows in tables.items()})


def inactive_failed(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, with the variants failed that did nothing else than the baseline.

    The first repeat decides.
    """
    first = runs[(runs["phase"] == "measured") & (runs["repeat"] == 0) & (runs["status"] == "ok")]
    calls = first.dropna(subset="sha256").groupby("variant")
    did = {name: Counter(zip(rows["rows"], rows["sha256"], strict=True)) for name, rows in calls}
    inactive = {
        name for name, counted in did.items() if name != BASELINE and counted == did.get(BASELINE)
    }

    failed = runs["variant"].isin(inactive)
    changed = runs.copy()
    changed.loc[failed, "status"] = "failed"
    changed.loc[failed, "message"] = "inactive: as many evaluations as cfg, and the same outcome"
    return changed


@dataclass(frozen=True)
class Estimate:
    """What a study will take: calls, seconds of computing, and the peak memory of a trial.

    The seconds hold those of known answers, whose calls are not counted.

    `uncounted` says why its work cannot be counted; it is empty where it can.
    """

    calls: int
    seconds: float
    rss_peak_bytes: int
    uncounted: str = ""


def estimate(study: Study, *, pipe: Pipeline | None = None, steps: int = 4) -> Estimate:
    """How long a study takes and how much memory, from one short call of the baseline.

    Evaluations are taken to cost in proportion to their rows, so the estimate for unguided steps is
    a lower bound.

    Args:
        study: that would run.
        pipe: used instead of the study's model.
        steps: of the short call.
    """
    pipe = loaded(study) if pipe is None else pipe
    work = prepare(pipe, study)
    calls = units(study)

    # The second call counts: the first one warms up.
    baseline = replace(parse(BASELINE), num_steps=steps, stock_start=True)
    short = Unit(study, baseline, calls[0].pairs, 0, "measured")
    observe(pipe, short, work)
    measured, *_ = observe(pipe, short, work)
    row_s = measured["denoise_s"] / measured["rows"]
    other_s = (measured["text_s"] + measured["decode_s"]) / len(short.pairs)

    # Controls that will be found by tuning cost what the baseline costs.
    to_be_found = [unit for unit in calls if unit.variant.is_baseline] * len(tunable(study))
    seconds = tuning_rows(study) * row_s
    listed = loop_length(pipe, study) if study.lists_steps else None
    further = chain.from_iterable(known_units(study).values())
    for unit in (*calls, *to_be_found, *further):
        nfe = unit.variant.rule(listed or unit.call.num_steps).nfe
        seconds += len(unit.pairs) * (nfe * row_s + other_s)
    peak_bytes = measured["rss_peak_bytes"]
    return Estimate(len(calls) + len(to_be_found), seconds, peak_bytes, work.uncounted)
