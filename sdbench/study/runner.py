"""Runs a study: what can be checked is checked, an engine runs the calls, images are scored.

The order of the calls is in `units.py`, what is checked in `check.py`, a call under its probes in
`local.py`. What its figures mean is in `instruments`, the tables are in `records`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from rich.progress import Progress, TaskID

from sdbench.instruments.quality import provenance
from sdbench.instruments.steps import GUIDANCE_SPACE
from sdbench.models.pipeline import Pipeline
from sdbench.models.random_weights import has_random_weights
from sdbench.records.names import BASELINE
from sdbench.records.remote import Remote
from sdbench.records.results import read_known
from sdbench.records.schema import empty, frame
from sdbench.records.store import Mode, Results, StudyFolder, existing_study, read
from sdbench.study.captions import warn_of_doubts
from sdbench.study.fields import digest
from sdbench.study.images import save, scored
from sdbench.study.known import known_answers, known_units, placed
from sdbench.study.local import Worker
from sdbench.study.observation import Outcome
from sdbench.study.progress import progress_bar
from sdbench.study.repeating import Repeating, marked
from sdbench.study.study import Study
from sdbench.study.tuning import constant_scales, with_scales
from sdbench.study.units import COMPANION, Shard, Told, Unit, parse_shard, units


class Engine(Protocol):
    """Where a study's calls run."""

    study: Study
    """With all its controls, and the output that the pipeline makes."""
    environment: dict[str, Any]
    """Of the first place that was ready."""
    pipeline: dict[str, str]
    """What `identity` says of the pipeline."""

    def outcomes(self, calls: Sequence[Unit], told: Told) -> Iterator[tuple[Unit, Outcome]]:
        """Run calls, in any order, and say how far they are. The caller writes."""
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
    times_known: Callable[[Path], None] | None = None,
) -> Path:
    """Run a study as `run` does, and return its folder: its tables may be large.

    `times_known` gets the folder where all times are taken and calls are left of which only the
    images count. What is made by then is scored. All other arguments are those of `run`.
    """
    if pipe is not None and has_random_weights(pipe):
        study = replace(study, random_weights=True)
    part = None if shard is None else parse_shard(shard)
    units(study, part)  # may refuse, and costs nothing
    quality = provenance(study.metrics or ())
    warn_of_doubts(study)
    out = tempfile.mkdtemp(prefix="sdbench-") if out is None else out
    stored = _stored_scales(out) if mode == "resume" and study.controls else []
    study = with_scales(study, stored)

    with ExitStack() as open_:
        # The engine comes before the folder, as it may refuse.
        opened = open_.enter_context(_opened(engine, study, pipe, workers, tune=not stored))
        repeating = Repeating(opened.study, part, pipeline=digest(opened.pipeline))
        settings = _settings(opened, quality, part)
        creating = StudyFolder.create(out, settings, environment=opened.environment, mode=mode)
        folder = open_.enter_context(creating)

        _require_expected(folder, repeating, out)
        _forget_known_answers(folder, repeating.units)

        def first() -> None:
            if times_known is not None:
                _judge(folder, opened.study, is_whole=False)
                times_known(folder.path)

        try:
            _run_missing(folder, opened, repeating, first)
        finally:
            folder.compact()
        _judge(folder, opened.study, is_whole=part is None)
        if read_known(folder.path).empty:
            _add_known_answers(folder, opened, part)
        return folder.path


def _settings(engine: Engine, quality: dict[str, Any], part: Shard | None) -> dict[str, Any]:
    """What a folder says of its study."""
    study = engine.study
    settings = study.as_json() | {"pipeline": engine.pipeline}
    judging = {name: quality[name] for name in study.metrics or ()}
    settings |= {"quality": judging, "guidance_space": GUIDANCE_SPACE}
    return settings if part is None else settings | {"shard": str(part)}


def _judge(folder: StudyFolder, study: Study, *, is_whole: bool) -> None:
    """Mark disturbed calls and those of variants that did nothing, and score the images."""
    tables = folder.read("runs", "steps")
    runs = tables["runs"]
    if study.is_repeated:
        runs = marked(runs, tables["steps"])
    if is_whole:  # what a variant did is known when all of the study ran
        runs = inactive_failed(runs)
    folder.rewrite("runs", runs)
    if study.makes_pictures:
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
    if not (study.makes_pictures and study.metrics):
        return
    further = known_units(study, part, pipeline=digest(engine.pipeline))
    made = placed(
        {
            answer: list(engine.outcomes(calls, lambda unit, share: None))
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


def _stored_scales(out: str | Path) -> list[str]:
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
        raise ValueError("workers is for engine 'ray': the local engine has none")
    return Worker(study, pipe, tune=tune)


def _require_expected(folder: StudyFolder, repeating: Repeating, out: str | Path) -> None:
    """Refuse a folder with calls of another study: both would count pairs and repeats twice."""
    listed = {unit for unit in folder.recorded() if not unit.startswith(COMPANION)}
    strange = listed - repeating.possible
    if strange:
        raise ValueError(
            f"{out} holds {len(strange)} calls that are not of this study now: they are of another "
            f"version of sdbench than {version('sdbench')}, or a file that a variant names has "
            "changed; --overwrite runs all again"
        )


def _run_missing(
    folder: StudyFolder, engine: Engine, repeating: Repeating, times_known: Callable[[], None]
) -> None:
    """Run what is not finished, and record each call as it comes, until repeats are enough."""
    finished = folder.finished()
    with progress_bar() as progress:
        shown = _Shown(progress)
        for calls in repeating.stages(lambda: folder.read("runs", "steps")):
            asked = [unit.id for unit in repeating.units]
            shown.asked(repeating.told, len(asked), done=len(finished.intersection(asked)))
            missing = [unit for unit in calls if unit.id not in finished]
            if missing and repeating.is_settled:
                progress.stop()  # what is shown now stands above the bar
                times_known()
                progress.start()
            for unit, outcome in engine.outcomes(missing, shown.told):
                record_call(folder, unit, outcome)
                finished.add(unit.id)  # a call that failed is not tried twice in a run
                shown.ended(unit)


class _Shown:
    """A study's calls in a progress bar: how many are done, and how far others are."""

    def __init__(self, progress: Progress) -> None:
        """Show nothing yet."""
        self._progress = progress
        self._task: TaskID | None = None
        self._done = 0
        self._shares: dict[str, float] = {}

    def asked(self, what: str, total: int, *, done: int) -> None:
        """So many calls are asked for now, of which so many are done."""
        self._done = done
        if self._task is None:
            self._task = self._progress.add_task(what, total=total, completed=done, what="")
        self._progress.update(self._task, description=what, total=total, completed=done)

    def told(self, unit: Unit, share: float) -> None:
        """A call has taken this share of its steps."""
        if unit.phase != "companion":  # it is on nobody's list
            self._shares[unit.id] = share
        self._update(what=unit.variant.name)

    def ended(self, unit: Unit) -> None:
        """A call is over, however it ended."""
        self._shares.pop(unit.id, None)
        self._done += unit.phase != "companion"
        self._update()

    def _update(self, **changes: Any) -> None:
        assert self._task is not None
        completed = self._done + sum(self._shares.values())
        self._progress.update(self._task, completed=completed, **changes)


def record_call(folder: StudyFolder, unit: Unit, outcome: Outcome) -> None:
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

    The first repeat decides; of what needs no time, its first call.
    """
    counts = runs["phase"].isin(["measured", "untimed"]) & (runs["status"] == "ok")
    first = runs[counts & (runs["repeat"] == 0)]
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
