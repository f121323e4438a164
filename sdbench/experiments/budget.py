"""The best way to spend a budget: searched on tuning pairs, judged on held-out ones, written down.

The search is successive halving: all candidates run on a few pairs, and the better third goes on to
three times as many. Most candidates are far from the best, and a few pairs show it. What a choice
costs is known before it runs, so a search method that models the loss would have little to add.
The best mask is then improved by moving its unguided steps one by one.

Source: Jamieson and Talwalkar 2016, arXiv 1502.07943, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sdbench.analysis.pairs import metric_levels
from sdbench.experiments.branching import Row, allowed_rows, judgeable
from sdbench.experiments.evaluating import Evaluator
from sdbench.experiments.planning import require_apart
from sdbench.experiments.search import without
from sdbench.experiments.spending import Budget, Candidate, Way, candidates
from sdbench.instruments.quality import find_metric, provenance
from sdbench.models.identity import identity
from sdbench.models.pipeline import Pipeline
from sdbench.models.settings import settings_of
from sdbench.records.environment import environment
from sdbench.records.files import read_table, write_json
from sdbench.records.names import BASELINE
from sdbench.records.schema import SPENDING, frame
from sdbench.records.store import Mode, StudyFolder
from sdbench.study.check import prepare
from sdbench.study.fields import entries
from sdbench.study.generation import Generation
from sdbench.study.progress import progress_bar
from sdbench.study.study import Study
from sdbench.variants.controls import in_its_loop
from sdbench.variants.grammar import parse
from sdbench.variants.other_scheduler import SCHEDULERS
from sdbench.variants.schedule import Mask, mask_text
from sdbench.variants.variant import Variant

KEPT = 3  # one candidate in three goes on to three times as many pairs
FEWEST = 4  # pairs that every candidate runs on
MOVES = 12  # of one unguided step, tried in a round
ROUNDS = 3  # of moves
BEST = 3  # candidates that are judged because they are the best, whatever their method


@dataclass(frozen=True)
class Objective:
    """What is good.

    Args:
        weights: of metrics, by name; each is taken so that lower is better.
    """

    weights: Mapping[str, float]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics."""
        return tuple(self.weights)

    def loss(self, rows: Sequence[Row]) -> float:
        """The weighted sum of the mean metrics of rows, each turned so that lower is better."""
        total = 0.0
        for name, weight in self.weights.items():
            kind, _ = find_metric(name)
            sign = -1.0 if kind.higher_is_better else 1.0
            total += sign * weight * float(np.mean([row[kind.name] for row in rows]))
        return total


@dataclass(frozen=True)
class Found:
    """A candidate with its loss on all tuning pairs."""

    candidate: Candidate
    loss: float


def spend(
    pipe: Pipeline,
    tuning: Generation,
    held_out: Generation,
    budgets: Sequence[Budget],
    out: Path,
    *,
    objective: Objective,
    methods: Sequence[str],
    schedulers: Sequence[str | None] = (None,),
    reference: str = "cfg",
    metrics: Sequence[str] = (),
    max_rows: int | None = None,
    mode: Mode = "new",
) -> pd.DataFrame:
    """Search the best way to spend each budget, judge it on held-out pairs, and write it down.

    Judged are the best three, and the best of every method under every scheduler. What the pipeline
    does not support is left out, and named in the record.

    Args:
        pipe: a guided pipeline.
        tuning: pairs, steps and scale of the search. All loops begin where one of so many steps
            does.
        held_out: other prompts and seeds.
        budgets: what an image may cost.
        out: gets `recipe-LIMIT.json` for every budget, and the table `spending`.
        objective: what the search lowers.
        methods: as `candidates` takes them.
        schedulers: likewise.
        reference: the variant that images are compared with, such as "cfg@200".
        metrics: further ones to report.
        max_rows: of one denoiser evaluation; from the free memory by default.
        mode: what becomes of a folder that holds budgets already; "resume" keeps those that are
            done.

    Returns:
        The table `spending`.

    Raises:
        ValueError: before the search, for anything that cannot run; prompts in both sets, or a
            budget that is there twice.
    """
    require_apart(tuning, held_out)
    entries("budgets", [f"{own.limit:g}" for own in budgets])
    scale = tuning.guidance_scale
    asked = [candidates(own, methods, schedulers, guidance_scale=scale) for own in budgets]
    unsupported = _unsupported(pipe, tuning, asked)
    asked = [_supported(choices, unsupported) for choices in asked]
    metrics = judgeable(held_out, list(dict.fromkeys([*objective.metrics, *metrics])))
    rows = allowed_rows(pipe, tuning, max_rows, metrics=metrics)

    how: dict[str, Any] = {"reference": parse(reference), "max_rows": rows}
    tuner = Evaluator(pipe, tuning, metrics=objective.metrics, chunk=FEWEST, **how)
    judge = Evaluator(pipe, held_out, metrics=metrics, chunk=held_out.batch, **how)
    record = _judged_on(tuner, judge, objective) | {
        "methods": list(methods),
        "schedulers": list(schedulers),
        "unsupported": {" under ".join(filter(None, way)): why for way, why in unsupported.items()},
        "reference": parse(reference).name,
    }
    how = {"mode": mode, "tables": SPENDING, "companions": _beside_the_table(out)}
    machine = environment() | settings_of(pipe)
    with StudyFolder.create(out, record, environment=machine, **how) as folder:
        of_budget = dict(zip(budgets, asked, strict=True))
        for budget in _missing(folder, budgets):
            found = list(searched(tuner, objective, of_budget[budget]))
            judged = _judged(judge, budget, found)
            # The table comes last: a budget that is in it is done.
            _write(out, record, budget, objective, found[0], judged)
            folder.add(f"{budget.limit:g}", spending=frame("spending", judged))
        folder.compact()
    return read_table(out, "spending")


def _judged_on(tuner: Evaluator, judge: Evaluator, objective: Objective) -> dict[str, Any]:
    """What the record says of the pipeline, of both sets and of what is good."""
    tuning = tuner.generation
    return {
        "tuning": tuning.as_json(),
        "held_out": judge.generation.as_json() | {"metrics": list(judge.metrics)},
        "objective": dict(objective.weights),
        "quality": provenance(judge.metrics),
        "pipeline": identity(tuner.pipe, full=tuning.full_hash),
    }


def _unsupported(
    pipe: Pipeline, tuning: Generation, asked: Sequence[Sequence[Candidate]]
) -> dict[Way, str]:
    """Why ways of spending cannot run on a pipeline, by one candidate of each.

    Raises:
        ValueError: one cannot run as it is asked for.
    """
    of_way = {choice.way: choice.variant for choices in reversed(asked) for choice in choices}
    variants = {variant.name: variant for variant in of_way.values()}
    study = Study(**tuning.settings, variants=(parse(BASELINE), *variants.values()), metrics=())
    why = prepare(pipe, study).unsupported
    return {way: why[own.name] for way, own in of_way.items() if own.name in why}


def _supported(choices: Sequence[Candidate], unsupported: Mapping[Way, str]) -> list[Candidate]:
    """The candidates that can run.

    Raises:
        ValueError: none can.
    """
    kept = [choice for choice in choices if choice.way not in unsupported]
    if not kept:
        raise ValueError(f"no method can run on this pipeline: {next(iter(unsupported.values()))}")
    return kept


def _missing(folder: StudyFolder, budgets: Sequence[Budget]) -> Iterator[Budget]:
    """The budgets that were not searched yet, one after the other, behind a progress bar."""
    done = folder.finished()
    missing = [budget for budget in budgets if f"{budget.limit:g}" not in done]
    with progress_bar() as progress:
        completed = len(budgets) - len(missing)
        task = progress.add_task("budgets", total=len(budgets), completed=completed, what="")
        for budget in missing:
            progress.update(task, what=str(budget))
            yield budget
            progress.advance(task)


def _beside_the_table(out: Path) -> list[str]:
    """The files of a folder of budgets that are no tables."""
    return [*(recipe.name for recipe in out.glob("recipe-*.json")), "budget.png"]


def searched(
    tuner: Evaluator, objective: Objective, choices: Sequence[Candidate]
) -> Iterator[Found]:
    """The best candidates, the very best first, and the best of every way of spending.

    Args:
        tuner: evaluates on the tuning pairs.
        objective: what is lowered.
        choices: all candidates.
    """
    total = len(tuner.generation.pairs)
    pairs = min(FEWEST, total)
    while True:
        ordered = _ordered(tuner, objective, choices, pairs)
        if pairs == total:
            break
        # The best of every way goes on, so that each has its figure in the end.
        kept = {found.candidate.way: found.candidate for found in reversed(ordered)}
        better = [found.candidate for found in ordered[: max(BEST, len(ordered) // KEPT)]]
        choices = list({c.variant.name: c for c in (*better, *kept.values())}.values())
        pairs = min(KEPT * pairs, total)

    leading = [found for found in ordered if _leads(found, ordered)]
    improved = [_improved(tuner, objective, found) for found in leading]
    ordered = sorted(_distinct([*improved, *ordered]), key=lambda found: found.loss)
    seen: set[Way] = set()
    for place, found in enumerate(ordered):
        if place < BEST or found.candidate.way not in seen:
            yield found
        seen.add(found.candidate.way)


def _leads(found: Found, ordered: Sequence[Found]) -> bool:
    """Whether a candidate is the best of its way."""
    return next(o for o in ordered if o.candidate.way == found.candidate.way) is found


def _distinct(found: Sequence[Found]) -> list[Found]:
    return list({one.candidate.variant.name: one for one in found}.values())


def _ordered(
    tuner: Evaluator, objective: Objective, choices: Sequence[Candidate], pairs: int
) -> list[Found]:
    """Candidates by their loss on the first pairs."""
    rows = tuner.evaluate([choice.variant for choice in choices], pairs=pairs)
    found = [Found(choice, objective.loss(own)) for choice, own in zip(choices, rows, strict=True)]
    return sorted(found, key=lambda one: one.loss)


def _improved(tuner: Evaluator, objective: Objective, found: Found) -> Found:
    """A mask with its unguided steps moved as long as that helps; what is no mask stays."""
    if found.candidate.method != "mask":
        return found
    total = len(tuner.generation.pairs)
    for _ in range(ROUNDS):
        tried = [Candidate("mask", variant) for variant in _moved(found.candidate)]
        best = _ordered(tuner, objective, tried, total)[:1]
        if not best or best[0].loss >= found.loss:
            break
        found = best[0]
    return found


def _moved(candidate: Candidate) -> list[Variant]:
    """Masks with one unguided step moved, the nearest places first."""
    variant = candidate.variant
    assert variant.num_steps is not None
    steps = variant.num_steps
    mask = variant.rule(steps).mask
    unguided = {step for step, is_guided in enumerate(mask) if not is_guided}
    moves = sorted(
        ((old, new) for old in unguided for new in range(steps) if new not in unguided),
        key=lambda move: abs(move[0] - move[1]),
    )
    masks: list[Mask] = [without(steps, unguided - {old} | {new}) for old, new in moves[:MOVES]]
    loop = in_its_loop(variant)
    return [parse(f"mask:{mask_text(mask)}{loop}") for mask in masks]


def _judged(judge: Evaluator, budget: Budget, found: Sequence[Found]) -> list[Row]:
    """The rows of a budget: every candidate on every held-out pair."""
    kind = type(judge.pipe.scheduler).__name__
    own = next((name for name, other in SCHEDULERS.items() if other == kind), kind)
    rows = judge.evaluate([one.candidate.variant for one in found])
    return [
        {
            "unit": f"{budget.limit:g}",
            "budget": budget.limit,
            "budget_unit": budget.unit,
            "method": one.candidate.method,
            "scheduler": one.candidate.variant.scheduler or own,
            "variant": one.candidate.variant.name,
            "tuning_loss": one.loss,
            **row,
        }
        for one, of_variant in zip(found, rows, strict=True)
        for row in of_variant
    ]


def _write(
    out: Path,
    record: Mapping[str, Any],
    budget: Budget,
    objective: Objective,
    found: Found,
    judged: Sequence[Row],
) -> None:
    """Write the recipe of a budget, which `recipe:FILE` takes, with its evidence."""
    table = pd.DataFrame(judged)
    columns = [find_metric(name)[0].name for name in objective.metrics]
    held_out = {
        str(name): {metric: metric_levels(own[metric], metric) for metric in columns}
        for name, own in table.groupby("variant")
    }
    content = {
        "variant": found.candidate.variant.name,
        "num_steps": record["tuning"]["num_steps"],
        "guidance_scale": record["tuning"]["guidance_scale"],
        "pipeline": record["pipeline"],
        "budget": {budget.unit: budget.limit},
        "evidence": {
            "objective": dict(objective.weights),
            "reference": record["reference"],
            "tuning_loss": found.loss,
            "tuning_pairs": len(record["tuning"]["prompts"]) * len(record["tuning"]["seeds"]),
            "held_out": held_out,
        },
    }
    write_json(out / f"recipe-{budget.limit:g}.json", content)
