"""The schedule planner: which steps to leave unguided for a given number of them, and what that costs in quality.

Masks are tuned on some (prompt, seed) pairs with true evaluations by the branching engine, and judged on others. The
search starts from the best of several shapes and exchanges one unguided step for a guided one as long as that helps: an
exchange can undo what a greedy choice cannot, and costs one mask where a beam costs many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sdbench.analysis.tables import denoise_share, guidance_ratio
from sdbench.instruments.quality import find_metric, provenance
from sdbench.models.mini_sd import scenes
from sdbench.models.registry import layout
from sdbench.records.environment import environment
from sdbench.records.files import read_table, write_json
from sdbench.records.schema import PLANS, frame
from sdbench.records.store import StudyFolder
from sdbench.study.plan import BASELINE, Study, Unit, read_prompts
from sdbench.study.runner import call_arguments, eight_bit, loop_length, prepare, run
from sdbench.study.sensitivity import Branch, Brancher, affordable_rows, baseline, batches
from sdbench.variants.branches import Mask
from sdbench.variants.guidance import guided_by
from sdbench.variants.registry import Variant, parse
from sdbench.variants.schedule import GuidanceSchedule

WIDTH = 24  # exchanges tried in one round
ROUNDS = 6
PLANNED = "plan"
RESCALED = "plan, rescaled"


@dataclass(frozen=True)
class Planned:
    """A mask and how it was found.

    Args:
        mask: True where the step is guided.
        start: the shape that the exchanges began with.
        exchanges: how many were made.
        loss: mean of the metric on the tuning pairs, lower is better.
    """

    mask: Mask
    start: str
    exchanges: int
    loss: float

    @property
    def unguided(self) -> int:
        """Number of unguided steps."""
        return self.mask.count(False)


class Tuner:
    """The mean metric of masks on the tuning pairs, each evaluated once.

    Args:
        pipe: a guided pipeline.
        study: the tuning pairs, steps and scale.
        metric: a name in `METRICS`.
        steps: of the loop.
        max_rows: of one denoiser evaluation.

    Attributes:
        losses: by mask; lower is better whatever the metric's direction.
        rows: denoiser rows evaluated so far, all pairs together.

    Raises:
        ValueError: a metric without a direction.
    """

    def __init__(self, pipe: Any, study: Study, metric: str, *, steps: int, max_rows: int) -> None:
        """Evaluate nothing yet."""
        kind, _ = find_metric(metric)
        if kind.higher_is_better is None:
            raise ValueError(f"metric '{metric}' has no direction, so no schedule is better than another by it")
        self.pipe, self.column, self.steps = pipe, kind.name, steps
        self.sign = -1.0 if kind.higher_is_better else 1.0
        self.losses: dict[Mask, float] = {}
        self.rows = 0
        self._groups = [Brancher(pipe, study, pairs, max_rows) for pairs in batches(study.pairs, study.batch)]

    def evaluate(self, masks: Iterable[Mask]) -> list[float]:
        """The losses of masks, in order."""
        masks = list(masks)
        new = sorted({mask for mask in masks if mask not in self.losses}, reverse=True)
        values: dict[Mask, list[float]] = {mask: [] for mask in new}
        branches = [Branch("mask", None, None, mask) for mask in new]
        for group in self._groups if new else ():
            for call in group.calls(branches):
                for row in group.follow(call)[0]:
                    values[tuple(letter == "1" for letter in row["mask"])].append(row[self.column])
                    self.rows += row["rows"]
        self.losses |= {mask: self.sign * float(np.mean(found)) for mask, found in values.items()}
        return [self.losses[mask] for mask in masks]

    def rescaled(self, mask: Mask, scale: float) -> float:
        """The loss of a mask whose guided steps have another scale; not before a mask was evaluated."""
        rows = [row for group in self._groups for row in _alone(group, _rescaled(mask, scale))]
        self.rows += sum(row["nfe"] for row in rows)
        return self.sign * float(np.mean([row[self.column] for row in rows]))


def without(steps: int, unguided: Iterable[int]) -> Mask:
    """The mask that guides all steps but some."""
    dropped = set(unguided)
    return tuple(step not in dropped for step in range(steps))


def shapes(tuner: Tuner, unguided: int) -> dict[str, Mask]:
    """Where a search begins: the steps that matter least by themselves, and every run and interval on a grid."""
    steps = tuner.steps
    singles = tuner.evaluate(without(steps, [step]) for step in range(steps))
    least = sorted(range(steps), key=lambda step: singles[step])[:unguided]
    stride = max(1, steps // 10)
    found = {"additive": without(steps, least)}
    for begin in {*range(0, steps - unguided + 1, stride), steps - unguided}:
        found[f"window:{begin}+{unguided}"] = without(steps, range(begin, begin + unguided))
    for head in range(0, unguided + 1, stride):  # guided in one run, unguided before and after it
        found[f"interval:{head}+{steps - unguided}"] = without(
            steps, [*range(head), *range(head + steps - unguided, steps)]
        )
    return found


def search(tuner: Tuner, unguided: int, *, rounds: int = ROUNDS, width: int = WIDTH) -> Planned:
    """The best mask found with a given number of unguided steps.

    Args:
        tuner: evaluates masks.
        unguided: between 1 and the loop's steps.
        rounds: of exchanges, at most.
        width: exchanges tried in a round.

    Raises:
        ValueError: more unguided steps than steps.
    """
    if not 1 <= unguided <= tuner.steps:
        raise ValueError(f"between 1 and {tuner.steps} steps can be unguided, not {unguided}")
    begun = shapes(tuner, unguided)
    losses = dict(zip(begun, tuner.evaluate(begun.values()), strict=True))
    start = min(losses, key=losses.__getitem__)
    best, exchanges = begun[start], 0
    singles = [tuner.losses[without(tuner.steps, [step])] for step in range(tuner.steps)]
    for _ in range(rounds):
        tried = [mask for mask in _exchanges(best, singles) if mask not in tuner.losses][:width]
        if not tried:
            break
        tuner.evaluate(tried)
        found = min(tried, key=tuner.losses.__getitem__)
        if tuner.losses[found] < tuner.losses[best]:
            best, exchanges = found, exchanges + 1
    return Planned(best, start, exchanges, tuner.losses[best])


def _exchanges(mask: Mask, singles: Sequence[float]) -> list[Mask]:
    """All masks with one unguided step moved, in turn by what single steps promise and by nearness of the two."""
    pairs = [
        (dropped, guided) for dropped, kept in enumerate(mask) if not kept for guided, other in enumerate(mask) if other
    ]
    promising = sorted(pairs, key=lambda pair: singles[pair[1]] - singles[pair[0]])
    near = sorted(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    order = dict.fromkeys(pair for both in zip(promising, near, strict=True) for pair in both)
    unguided = {step for step, kept in enumerate(mask) if not kept}
    return [without(len(mask), unguided - {dropped} | {guided}) for dropped, guided in order]


def search_within(tuner: Tuner, bound: float, *, rounds: int = ROUNDS, width: int = WIDTH) -> Planned:
    """The plan with the most unguided steps whose mean metric stays within a bound on the tuning pairs.

    The number is found by halving, with the starting shapes only, and then raised as long as exchanges reach the bound.

    Raises:
        ValueError: even one unguided step goes beyond it.
    """
    limit = tuner.sign * bound
    low, high = 0, tuner.steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if min(tuner.evaluate(shapes(tuner, middle).values())) <= limit else (low, middle - 1)
        )
    found = None
    for unguided in range(max(low, 1), tuner.steps + 1):
        planned = search(tuner, unguided, rounds=rounds, width=width)
        if planned.loss > limit:
            break
        found = planned
    if found is None:
        raise ValueError(f"no mask keeps the {tuner.column} within {bound:g}, not even with one unguided step")
    return found


def steps_for(saving: float, *, steps: int, ratio: float, denoise_share: float) -> int:
    """How many unguided steps save a share of the time of a call.

    Args:
        saving: in (0, 1).
        steps: of the loop.
        ratio: R, the time of a guided step over that of an unguided one.
        denoise_share: of the loop in a call.

    Raises:
        ValueError: all steps together do not save as much.
    """
    most = denoise_share * (1 - 1 / ratio)
    if not 0 < saving <= most:
        raise ValueError(
            f"a saving of {saving:.1%} is out of reach: dropping guidance everywhere saves {most:.1%} here"
        )
    return math.ceil(saving / most * steps - 1e-9)


def controls(
    tuner: Tuner, unguided: int, *, num_steps: int, guidance_scale: float
) -> tuple[dict[str, Mask], list[Variant]]:
    """What a plan has to be compared with: masks with as many unguided steps, and variants at the same work.

    Returns:
        Masks by the name of their variant (the interval of guidance is the best on the tuning pairs); and variants that
        change something else: fewer steps, both neighbours where no number has the same work, and a lower scale, which
        is the plan's mean scale over all steps.
    """
    steps = tuner.steps
    masks = {
        f"last:{unguided}": GuidanceSchedule.last(steps, unguided).mask,
        f"first:{unguided}": GuidanceSchedule.first(steps, unguided).mask,
        f"random:{unguided}@0": GuidanceSchedule.random(steps, unguided, seed=0).mask,
    }
    period = round(steps / unguided)
    if steps // period == unguided:
        masks[f"every:{period}"] = GuidanceSchedule.every(steps, period).mask
    intervals = [mask for name, mask in shapes(tuner, unguided).items() if name.startswith("interval")]
    masks["interval"] = min(intervals, key=lambda mask: tuner.evaluate([mask])[0])
    work = (2 * steps - unguided) / (2 * steps) * num_steps
    fewer = sorted({max(1, math.floor(work)), max(1, math.ceil(work))})
    scale = 1 + (guidance_scale - 1) * (1 - unguided / steps)
    names = [f"steps:{count}" for count in fewer] + ([f"scale:{scale:.2f}"] if scale > 1.005 else [])
    return masks, [parse(name) for name in names]


def judge(
    pipe: Any, study: Study, masks: dict[str, Mask], others: Sequence[Variant], *, max_rows: int
) -> list[dict[str, Any]]:
    """Every metric of the study for masks and for other variants on its pairs, against the fully guided image.

    Returns:
        One row per variant and pair: `variant`, `prompt_id`, `prompt`, `seed`, `nfe` and the metrics; the baseline too.
    """
    rows: list[dict[str, Any]] = []
    columns = [find_metric(name)[0].name for name in study.metrics or ()]
    named: dict[Mask, list[str]] = {}
    for name, mask in masks.items():
        named.setdefault(mask, []).append(name)
    branches = [Branch("mask", None, None, mask) for mask in sorted(named, reverse=True)]
    for pairs in batches(study.pairs, study.batch):
        group = Brancher(pipe, study, pairs, max_rows)
        for call in [(baseline(len(branches[0].mask)),), *group.calls(branches)]:
            for row in group.follow(call)[0]:
                names = named.get(tuple(letter == "1" for letter in row["mask"]), [BASELINE])
                known = {name: row[name] for name in ("prompt_id", "prompt", "seed", "nfe", *columns)}
                rows += [{"variant": name} | known for name in names]
        for variant in others:
            rows += _alone(group, variant)
    return rows


def _rescaled(mask: Mask, scale: float) -> Variant:
    return Variant(RESCALED, lambda _: GuidanceSchedule(mask), guidance_scale=scale)


def _alone(group: Brancher, variant: Variant) -> list[dict[str, Any]]:
    """A variant that is no branch of the same trunk, in a call of its own."""
    unit = Unit(group.study, variant, group.pairs, 0, "measured")
    with guided_by(group.pipe, variant.rule) as trace:
        images = eight_bit(group.pipe(**call_arguments(group.study, unit, group.pipe), output_type="pt").images)
    nfe = int(trace.steps["rows"].sum()) // len(images)
    quality = group.quality(images, [prompt for _, prompt, _ in group.pairs])
    return [
        {"variant": variant.name, "prompt_id": prompt_id, "prompt": prompt, "seed": seed, "nfe": nfe} | values
        for (prompt_id, prompt, seed), values in zip(group.pairs, quality, strict=True)
    ]


@dataclass(frozen=True)
class Target:
    """What a plan is for; exactly one of the three.

    Args:
        unguided: numbers of unguided steps.
        bound: of the metric's mean: as many unguided steps as keep it.
        saving: share of the time of a call: as few unguided steps as save it.
    """

    unguided: tuple[int, ...] = ()
    bound: float | None = None
    saving: float | None = None

    def __post_init__(self) -> None:
        """Refuse none and more than one."""
        if (bool(self.unguided), self.bound is not None, self.saving is not None).count(True) != 1:
            raise ValueError("a plan needs one of: numbers of unguided steps, a bound of the metric, a saving")


def plan_studies(
    study: Study, prompts_file: Path | None, held_out_file: Path | None, *, pairs: int
) -> tuple[Study, Study]:
    """A study with the tuning prompts and one with the held-out prompts.

    Args:
        study: everything but the prompts.
        prompts_file: tuning prompts, one per line.
        held_out_file: held-out prompts, one per line.
        pairs: of mini-sd, without the files: as many held-out captions, and a quarter as many to tune on, all with
            objects that it never saw in training.

    Raises:
        ValueError: one file without the other, a file that cannot be read, or no files for another model.
    """
    if (prompts_file is None) != (held_out_file is None):
        raise ValueError("tuning and held-out prompts come in a file each: give both or none")
    if prompts_file is not None and held_out_file is not None:
        return (
            replace(study, prompts=read_prompts(prompts_file)),
            replace(study, prompts=read_prompts(held_out_file)),
        )
    if study.model != "mini-sd":
        raise ValueError("a plan needs tuning prompts and held-out prompts in a file each; only mini-sd brings its own")
    told = scenes.captions(scenes.sample(2 * pairs + 64, np.random.default_rng(5), split="test"))
    distinct = list(dict.fromkeys(told))[: pairs + max(1, pairs // 4)]
    metrics = (*(study.metrics or ()), "alignment")
    held_out = replace(study, prompts=tuple(distinct[:pairs]), metrics=tuple(dict.fromkeys(metrics)))
    return replace(study, prompts=tuple(distinct[pairs:])), held_out


def plan(
    pipe: Any,
    tuning: Study,
    held_out: Study,
    target: Target,
    out: Path,
    *,
    metric: str = "lpips",
    scales: Sequence[float] = (),
    rounds: int = ROUNDS,
    max_rows: int | None = None,
    mode: str = "new",
) -> pd.DataFrame:
    """Find schedules on the tuning pairs, judge them on the held-out ones, and write both.

    Args:
        pipe: a guided pipeline.
        tuning: pairs, steps and scale of the search; `metric` is judged, whatever its metrics are.
        held_out: other prompts, with the metrics to report.
        target: what the plans are for.
        out: gets `plan-K.json` for every K and the table `judged`.
        metric: what the search lowers, or raises where higher is better.
        scales: guidance scales to try for the steps that stay guided; the best one is reported apart.
        rounds: of exchanges.
        max_rows: of one denoiser evaluation; from the free memory by default.
        mode: "new" or "overwrite", for a folder that holds plans already.

    Returns:
        The table `judged`.

    Raises:
        ValueError: before the search, for anything that cannot run; prompts in both sets.
    """
    shared = set(tuning.prompts) & set(held_out.prompts)
    if shared:
        raise ValueError(f"'{min(shared)}' is among the tuning and the held-out prompts")
    tuning = replace(tuning, metrics=(metric,))
    held_out = replace(held_out, metrics=tuple(dict.fromkeys((metric, *(held_out.metrics or ())))))
    work, steps = prepare(pipe, tuning), loop_length(pipe, tuning)
    rows = affordable_rows(pipe, work) if max_rows is None else max_rows
    tuner = Tuner(pipe, tuning, metric, steps=steps, max_rows=rows)
    beyond = [count for count in target.unguided if not 1 <= count <= steps]
    if beyond:
        raise ValueError(f"between 1 and {steps} steps can be unguided, not {beyond[0]}")
    record = {"tuning": tuning.as_json(), "held_out": held_out.as_json(), "target": asdict(target), "rounds": rounds}
    record |= {"metric": metric, "quality": provenance(held_out.metrics or ()), "scales": list(scales)}
    env = environment() | layout(pipe)
    with StudyFolder.create(out, record, environment=env, mode=mode, tables=PLANS) as folder:  # type: ignore[arg-type]
        for planned in _planned(tuner, target, tuning, rounds):
            masks, others = controls(
                tuner, planned.unguided, num_steps=tuning.num_steps, guidance_scale=tuning.guidance_scale
            )
            content = _content(planned, tuning, metric, scheduler=type(pipe.scheduler).__name__)
            masks[PLANNED] = planned.mask
            if scales:
                best = min(scales, key=lambda scale: tuner.rescaled(planned.mask, scale))
                others.append(_rescaled(planned.mask, best))
                write_json(out / f"plan-{planned.unguided}-rescaled.json", content | {"guided_scale": best})
            write_json(out / f"plan-{planned.unguided}.json", content)
            unit = f"{planned.unguided}"
            known = {"unit": unit, "unguided": planned.unguided}
            judged = judge(pipe, held_out, masks, others, max_rows=rows)
            folder.add(unit, judged=frame("judged", [known | row for row in judged]))
        folder.compact()
    return read_table(out, "judged")


def _planned(tuner: Tuner, target: Target, tuning: Study, rounds: int) -> Iterator[Planned]:
    if target.bound is not None:
        yield search_within(tuner, target.bound, rounds=rounds)
        return
    numbers = target.unguided
    if target.saving is not None:
        timed = replace(
            tuning, variants=(BASELINE, "last:50%"), prompts=tuning.prompts[: tuning.batch], repeats=3, metrics=()
        )
        results = run(replace(timed, seeds=tuning.seeds[:1]), pipe=tuner.pipe)
        ratio, share = guidance_ratio(results), denoise_share(results)
        numbers = (steps_for(target.saving, steps=tuner.steps, ratio=ratio, denoise_share=share),)
    for unguided in numbers:
        yield search(tuner, unguided, rounds=rounds)


def _content(planned: Planned, study: Study, metric: str, *, scheduler: str) -> dict[str, Any]:
    """What stands in a schedule file, which `plan:FILE` and `GuidanceSchedule.load` take."""
    return {
        "mask": "".join("01"[guided] for guided in planned.mask),
        "scheduler": scheduler,
        "model": study.model,
        "num_steps": study.num_steps,
        "guidance_scale": study.guidance_scale,
        "evidence": {
            "metric": metric,
            "tuning_pairs": len(study.pairs),
            "tuning_mean": abs(planned.loss),
            "start": planned.start,
            "exchanges": planned.exchanges,
        },
    }
