"""Plans: which steps to leave unguided for a given number of them, and what that costs in quality.

Masks are tuned on some (prompt, seed) pairs (`search.py`) and judged on others (`judging.py`). Here
is what a plan is for, on which pairs it is made, and what is written of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from sdbench.analysis.pairs import metric_levels
from sdbench.analysis.predicted import denoise_share, guidance_ratio
from sdbench.experiments.branching import Row, allowed_rows, judgeable
from sdbench.experiments.judging import Version, comparison, judge
from sdbench.experiments.search import ROUNDS, Planned, Tuner, search, search_within
from sdbench.instruments.quality import provenance
from sdbench.models.grammars import GRAMMARS, held_out_captions
from sdbench.models.identity import identity
from sdbench.models.pipeline import Pipeline
from sdbench.models.settings import settings_of
from sdbench.records.environment import environment
from sdbench.records.files import read_prompts, read_table, write_json
from sdbench.records.names import BASELINE
from sdbench.records.schema import PLANS, frame
from sdbench.records.store import Mode, Results, StudyFolder
from sdbench.study.check import loop_length
from sdbench.study.generation import Generation
from sdbench.study.runner import run
from sdbench.study.study import Study
from sdbench.variants.grammar import parse
from sdbench.variants.schedule import mask_text

TIMING_REPEATS = 6  # the fewest that give an interval
RATIO_REPEATS = 3  # of the short study by which a saving becomes a number of steps
OWN_SEED = 5  # of an embedded model's own captions
SPARE = 64  # captions drawn beyond twice the held-out ones, as some come twice


def steps_for(saving: float, *, steps: int, ratio: float, denoise_share: float) -> int:
    """How many unguided steps save a share of the time of a call.

    Args:
        saving: in (0, 1).
        steps: of the loop.
        ratio: R, the time of a guided step over that of an unguided one.
        denoise_share: of the loop in a call.

    Raises:
        ValueError: all steps together save less.
    """
    most = denoise_share * (1 - 1 / ratio)
    if not 0 < saving <= most:
        raise ValueError(
            f"a saving of {saving:.1%} is out of reach: "
            f"dropping guidance everywhere saves {most:.1%} here"
        )
    return math.ceil(saving / most * steps - 1e-9)


@dataclass(frozen=True)
class Target:
    """What a plan is for; exactly one of the three.

    Args:
        unguided: numbers of unguided steps.
        bound: of the metric's mean; the plan has the most unguided steps that keep it.
        saving: share of the time of a call; the plan has the fewest unguided steps that save it.
    """

    unguided: tuple[int, ...] = ()
    bound: float | None = None
    saving: float | None = None

    def __post_init__(self) -> None:
        """Refuse none and more than one."""
        if (bool(self.unguided), self.bound is not None, self.saving is not None).count(True) != 1:
            raise ValueError(
                "a plan needs one of: numbers of unguided steps, a bound of the metric, a saving"
            )


class Sets(NamedTuple):
    """On what a plan is made.

    Attributes:
        tuning: the pairs of the search.
        held_out: the pairs on which the plan is judged.
        metrics: to report of the held-out images, the search's own not among them.
    """

    tuning: Generation
    held_out: Generation
    metrics: tuple[str, ...]


def tuning_and_held_out(
    generation: Generation,
    prompts_file: Path | None,
    held_out_file: Path | None,
    *,
    pairs: int,
) -> Sets:
    """A generation with the tuning prompts, and one with the held-out prompts and other seeds.

    Args:
        generation: everything but the prompts, with the tuning seeds.
        prompts_file: tuning prompts, one per line.
        held_out_file: held-out prompts, one per line.
        pairs: of an embedded model, without the files: the number of held-out captions; an eighth
            of that number are the tuning captions. All are of what it never saw in training.

    Raises:
        ValueError: one file without the other, a file that cannot be read, no files for another
            model, or more pairs than it has captions.
    """
    if (prompts_file is None) != (held_out_file is None):
        raise ValueError("tuning and held-out prompts come in a file each: give both or none")

    # The noise of what is held out is other noise, too.
    beyond = max(generation.seeds) + 1
    other_seeds = tuple(seed + beyond for seed in generation.seeds)

    if prompts_file is not None and held_out_file is not None:
        tuning = replace(generation, prompts=read_prompts(prompts_file))
        held_out = replace(generation, prompts=read_prompts(held_out_file), seeds=other_seeds)
        return Sets(tuning, held_out, ())

    if generation.model not in GRAMMARS:
        raise ValueError(
            "a plan needs tuning prompts and held-out prompts in a file each; "
            f"only {' and '.join(GRAMMARS)} bring their own"
        )

    both = pairs + max(1, pairs // 8)
    draws = 2 * pairs + SPARE
    distinct = held_out_captions(both, generation.model, seed=OWN_SEED, draws=draws)
    tuning = replace(generation, prompts=tuple(distinct[pairs:]))
    held_out = replace(generation, prompts=tuple(distinct[:pairs]), seeds=other_seeds)
    return Sets(tuning, held_out, ("alignment",))


class Plans(NamedTuple):
    """What planning leaves behind.

    Attributes:
        folder: holds a schedule file per number of unguided steps.
        judged: the table of that name.
        timing: what full guidance, the plans and the variants with the same work take; in
            `timing/`.
    """

    folder: Path
    judged: pd.DataFrame
    timing: Results


def plan(
    pipe: Pipeline,
    tuning: Generation,
    held_out: Generation,
    target: Target,
    out: Path,
    *,
    metric: str = "lpips",
    metrics: Sequence[str] = (),
    scales: Sequence[float] = (),
    rounds: int = ROUNDS,
    max_rows: int | None = None,
    mode: Mode = "new",
) -> Plans:
    """Find schedules on the tuning pairs, judge and time them on the held-out ones, and write them.

    Args:
        pipe: a guided pipeline.
        tuning: pairs, steps and scale of the search.
        held_out: other prompts and seeds.
        target: what the plans are for.
        out: gets `plan-K.json` for every K, the table `judged`, and a study of their time in
            `timing/`.
        metric: what the search lowers, or raises where higher is better.
        metrics: further ones to report of the held-out images.
        scales: guidance scales to try for the steps that stay guided; the best one is reported
            apart.
        rounds: of exchanges.
        max_rows: of one denoiser evaluation; from the free memory by default.
        mode: "new" or "overwrite", for a folder that holds plans already.

    Raises:
        ValueError: before the search, for anything that cannot run; prompts in both sets.
    """
    # Everything that can be refused is refused before the search.
    _check(tuning, held_out, scales)
    metrics = judgeable(held_out, list(dict.fromkeys([metric, *metrics])))
    rows = allowed_rows(pipe, tuning, max_rows, metrics=metrics)
    tuner = Tuner(pipe, tuning, metric, steps=loop_length(pipe, tuning), max_rows=rows)
    _require_steps(target.unguided, tuner.steps)
    searched = {"target": asdict(target), "rounds": rounds, "scales": list(scales)}
    record = searched | _judged_on(tuner, held_out, metrics)
    record["pipeline"] = identity(pipe, full=tuning.full_hash)
    machine = environment() | settings_of(pipe)

    # A plan is kept as soon as it was judged: the next search takes as long again.
    timed = [BASELINE]
    with StudyFolder.create(out, record, environment=machine, mode=mode, tables=PLANS) as folder:
        _remove_stale(out)
        for planned in _planned(tuner, target, rounds):
            compared = comparison(tuner, planned, scales=scales)
            judged = judge(
                pipe, held_out, compared.masks, compared.others, metrics=metrics, max_rows=rows
            )

            _record(folder, planned, judged)
            _write(out, tuner, planned, compared.versions, judged)
            timed += compared.timed(planned.unguided)
        folder.compact()

    # Time is a study by itself: every variant takes turns with the others.
    timing = _one_call(held_out, timed, repeats=TIMING_REPEATS)
    return Plans(out, read_table(out, "judged"), run(timing, out / "timing", pipe=pipe, mode=mode))


def _judged_on(tuner: Tuner, held_out: Generation, metrics: Sequence[str]) -> dict[str, Any]:
    """What the record of plans says of both sets and of the metrics."""
    return {
        "tuning": tuner.generation.as_json() | {"metrics": [tuner.metric]},
        "held_out": held_out.as_json() | {"metrics": list(metrics)},
        "metric": tuner.metric,
        "quality": provenance(metrics),
    }


def _one_call(generation: Generation, variants: Iterable[str], *, repeats: int) -> Study:
    """A study of time, with one call of a generation's pairs per variant and repeat."""
    one_batch = {
        "prompts": generation.prompts[: generation.batch],
        "seeds": generation.seeds[:1],
    }
    return Study(
        **generation.settings | one_batch,
        variants=tuple(map(parse, dict.fromkeys(variants))),
        repeats=repeats,
        metrics=(),
        name="plan",
    )


def require_apart(tuning: Generation, held_out: Generation) -> None:
    """Refuse prompts or seeds that are both tuned on and judged on.

    Raises:
        ValueError: it names one.
    """
    for what in ("prompts", "seeds"):
        shared = {*getattr(tuning, what)} & {*getattr(held_out, what)}
        if shared:
            raise ValueError(f"'{min(shared)}' is among the tuning and the held-out {what}")


def _check(tuning: Generation, held_out: Generation, scales: Sequence[float]) -> None:
    require_apart(tuning, held_out)
    if any(scale <= 1 for scale in scales):
        raise ValueError(f"a guidance scale of {min(scales):g} is no guidance")


def _require_steps(unguided: Sequence[int], steps: int) -> None:
    beyond = [count for count in unguided if not 1 <= count <= steps]
    if beyond:
        raise ValueError(f"between 1 and {steps} steps can be unguided, not {beyond[0]}")


def _remove_stale(out: Path) -> None:
    """Remove what an earlier plan left in its folder next to the tables."""
    for stale in [*out.glob("plan-*.json"), out / "plan.png"]:
        stale.unlink(missing_ok=True)


def _planned(tuner: Tuner, target: Target, rounds: int) -> Iterator[Planned]:
    """The schedules that reach a target, one after the other."""
    if target.bound is not None:
        yield search_within(tuner, target.bound, rounds=rounds)
        return

    numbers = target.unguided
    if target.saving is not None:
        study = _one_call(tuner.generation, (BASELINE, "last:50%"), repeats=RATIO_REPEATS)
        results = run(study, pipe=tuner.pipe)
        ratio = guidance_ratio(results).estimate
        share = denoise_share(results)
        numbers = (steps_for(target.saving, steps=tuner.steps, ratio=ratio, denoise_share=share),)
    for unguided in numbers:
        yield search(tuner, unguided, rounds=rounds)


def _record(folder: StudyFolder, planned: Planned, judged: Sequence[Row]) -> None:
    """Write the rows of a plan and of its controls."""
    unit = f"{planned.unguided}"
    about = {"unit": unit, "unguided": planned.unguided}
    folder.add(unit, judged=frame("judged", [about | row for row in judged]))


def _write(
    out: Path,
    tuner: Tuner,
    planned: Planned,
    versions: Sequence[Version],
    judged: Sequence[Row],
) -> None:
    """Write the schedule files of a plan, which `plan:FILE` and `GuidanceSchedule.load` take."""
    by_variant = pd.DataFrame(judged).groupby("variant")[tuner.column]
    levels = {str(name): metric_levels(values, tuner.column) for name, values in by_variant}
    for version in versions:
        evidence: dict[str, Any] = {"metric": tuner.metric}
        tuned = metric_levels(pd.Series(version.values), tuner.column)
        for level, figure in tuned.items():
            evidence[f"tuning_{level}"] = figure
            held_out = {"mean": "held_out"}.get(level, f"held_out_{level}")
            evidence[held_out] = {name: own[level] for name, own in levels.items()}
        ending = "" if version.scale is None else "-rescaled"
        content = _content(tuner, planned, version.scale, evidence)
        write_json(out / f"plan-{planned.unguided}{ending}.json", content)


def _content(
    tuner: Tuner, planned: Planned, scale: float | None, evidence: dict[str, Any]
) -> dict[str, Any]:
    """What stands in a schedule file."""
    tuning = tuner.generation
    return {
        "mask": mask_text(planned.mask),
        "scheduler": type(tuner.pipe.scheduler).__name__,
        "model": tuning.model,
        "num_steps": tuning.num_steps,
        "guidance_scale": tuning.guidance_scale,
        **({} if scale is None else {"guided_scale": scale}),
        "evidence": {
            **evidence,
            "tuning_pairs": len(tuning.pairs),
            "start": planned.start,
            "exchanges": planned.exchanges,
        },
    }
