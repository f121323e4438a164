"""The schedule planner: which steps to leave unguided for a given number of them, and what that costs in quality.

Masks are tuned on some (prompt, seed) pairs (`search.py`) and judged on others, against every simple choice of as many
steps or as much work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sdbench.analysis.frontier import PLANNED, timed_as
from sdbench.analysis.tables import denoise_share, guidance_ratio
from sdbench.experiments.branching import (
    Branch,
    Brancher,
    allowed_rows,
    baseline,
    batches,
    require_plain,
)
from sdbench.experiments.search import (
    RESCALED,
    ROUNDS,
    Planned,
    Tuner,
    alone,
    rescaled,
    search,
    search_within,
    shapes,
    without,
)
from sdbench.instruments.quality import find_metric, provenance
from sdbench.models.mini_sd import scenes
from sdbench.models.registry import layout
from sdbench.records.environment import environment
from sdbench.records.files import read_prompts, read_table, write_json
from sdbench.records.names import BASELINE
from sdbench.records.schema import PLANS, frame
from sdbench.records.store import Mode, Results, StudyFolder
from sdbench.study.check import loop_length
from sdbench.study.runner import run
from sdbench.study.study import Study
from sdbench.study.tuning import nearest_scales
from sdbench.variants.controls import fewer_steps
from sdbench.variants.registry import Variant, parse
from sdbench.variants.schedule import GuidanceSchedule, Mask, mask_of, mask_text

TIMING_REPEATS = 6  # the fewest that give an interval


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
    tuner: Tuner, unguided: int, *, num_steps: int
) -> tuple[dict[str, Mask], list[Variant]]:
    """What a plan has to be compared with: masks with as many unguided steps, and fewer steps.

    Returns:
        Masks by the name of their variant (the interval of guidance is the best on the tuning pairs); and full guidance
        with as much work, by both neighbours where no number of steps has the same.
    """
    steps = tuner.steps
    masks = {
        f"last:{unguided}": GuidanceSchedule.last(steps, unguided).mask,
        f"first:{unguided}": GuidanceSchedule.first(steps, unguided).mask,
        f"random:{unguided}@0": GuidanceSchedule.random(steps, unguided, seed=0).mask,
    }
    masks[f"spaced:{unguided}"] = without(
        steps, ((2 * k + 1) * steps // (2 * unguided) for k in range(unguided))
    )
    intervals = {
        name: mask for name, mask in shapes(tuner, unguided).items() if name.startswith("interval")
    }
    best = min(intervals, key=lambda name: tuner.evaluate([intervals[name]])[0])
    masks[best] = intervals[best]
    work = (2 * steps - unguided) / steps * num_steps
    return masks, [parse(name) for name in fewer_steps(work)]


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
        for call in group.calls([baseline(len(branches[0].mask)), *branches]):
            for row in group.follow(call)[0]:
                names = named.get(mask_of(row["mask"]), [BASELINE])
                known = {
                    name: row[name] for name in ("prompt_id", "prompt", "seed", "nfe", *columns)
                }
                rows += [{"variant": name} | known for name in names]
        for variant in others:
            rows += alone(group, variant)
    return rows


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
            raise ValueError(
                "a plan needs one of: numbers of unguided steps, a bound of the metric, a saving"
            )


def plan_studies(
    study: Study, prompts_file: Path | None, held_out_file: Path | None, *, pairs: int
) -> tuple[Study, Study]:
    """A study with the tuning prompts, and one with the held-out prompts and as many other seeds.

    Args:
        study: everything but the prompts, with the tuning seeds.
        prompts_file: tuning prompts, one per line.
        held_out_file: held-out prompts, one per line.
        pairs: of mini-sd, without the files: as many held-out captions, and an eighth as many to tune on, all with
            objects that it never saw in training.

    Raises:
        ValueError: one file without the other, a file that cannot be read, or no files for another model.
    """
    if (prompts_file is None) != (held_out_file is None):
        raise ValueError("tuning and held-out prompts come in a file each: give both or none")
    held_out = replace(study, seeds=tuple(seed + max(study.seeds) + 1 for seed in study.seeds))
    if prompts_file is not None and held_out_file is not None:
        return (
            replace(study, prompts=read_prompts(prompts_file)),
            replace(held_out, prompts=read_prompts(held_out_file)),
        )
    if study.model != "mini-sd":
        raise ValueError(
            "a plan needs tuning prompts and held-out prompts in a file each; only mini-sd brings its own"
        )
    told = scenes.captions(scenes.sample(2 * pairs + 64, np.random.default_rng(5), split="test"))
    distinct = list(dict.fromkeys(told))[: pairs + max(1, pairs // 8)]
    metrics = (*(study.metrics or ()), "alignment")
    held_out = replace(
        held_out, prompts=tuple(distinct[:pairs]), metrics=tuple(dict.fromkeys(metrics))
    )
    return replace(study, prompts=tuple(distinct[pairs:])), held_out


class Plans(NamedTuple):
    """What planning leaves behind.

    Attributes:
        folder: holds a schedule file per number of unguided steps.
        judged: the table of that name.
        timing: what the plans and the variants with as much work take, beside full guidance; in `timing/`.
    """

    folder: Path
    judged: pd.DataFrame
    timing: Results


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
    mode: Mode = "new",
) -> Plans:
    """Find schedules on the tuning pairs, judge and time them on the held-out ones, and write all of it.

    Args:
        pipe: a guided pipeline.
        tuning: pairs, steps and scale of the search; `metric` is judged, whatever its metrics are.
        held_out: other prompts, with the metrics to report.
        target: what the plans are for.
        out: gets `plan-K.json` for every K, the table `judged`, and a study of their time in `timing/`.
        metric: what the search lowers, or raises where higher is better.
        scales: guidance scales to try for the steps that stay guided; the best one is reported apart.
        rounds: of exchanges.
        max_rows: of one denoiser evaluation; from the free memory by default.
        mode: "new" or "overwrite", for a folder that holds plans already.

    Raises:
        ValueError: before the search, for anything that cannot run; prompts in both sets.
    """
    _check(tuning, held_out, scales)
    tuning = replace(tuning, metrics=(metric,))
    held_out = replace(held_out, metrics=tuple(dict.fromkeys((metric, *(held_out.metrics or ())))))
    rows, steps = allowed_rows(pipe, tuning, max_rows), loop_length(pipe, tuning)
    tuner = Tuner(pipe, tuning, metric, steps=steps, max_rows=rows)
    beyond = [count for count in target.unguided if not 1 <= count <= steps]
    if beyond:
        raise ValueError(f"between 1 and {steps} steps can be unguided, not {beyond[0]}")
    record = {
        "tuning": tuning.as_json(),
        "held_out": held_out.as_json(),
        "target": asdict(target),
        "rounds": rounds,
    }
    record |= {
        "metric": metric,
        "quality": provenance(held_out.metrics or ()),
        "scales": list(scales),
    }
    env = environment() | layout(pipe)
    with StudyFolder.create(out, record, environment=env, mode=mode, tables=PLANS) as folder:
        for stale in [*out.glob("plan-*.json"), out / "plan.png"]:
            stale.unlink(missing_ok=True)
        timed = [BASELINE]
        for planned in _planned(tuner, target, tuning, rounds):
            masks, others = controls(tuner, planned.unguided, num_steps=tuning.num_steps)
            others += _weaker(
                pipe, replace(tuning, batch=max(1, min(tuning.batch, rows // 2))), planned.mask
            )
            masks[PLANNED] = planned.mask
            tuned: dict[str, tuple[float, float | None]] = {PLANNED: (planned.loss, None)}
            if scales:
                losses = {scale: tuner.rescaled(planned.mask, scale) for scale in scales}
                best = min(scales, key=losses.__getitem__)
                others.append(rescaled(planned.mask, best))
                tuned[RESCALED] = (losses[best], best)
            unit = f"{planned.unguided}"
            known = {"unit": unit, "unguided": planned.unguided}
            judged = judge(pipe, held_out, masks, others, max_rows=rows)
            folder.add(unit, judged=frame("judged", [known | row for row in judged]))
            timed += [
                timed_as(name, planned.unguided)
                for name in (PLANNED, *(other.name for other in others))
            ]
            for name, (loss, scale) in tuned.items():
                evidence = {
                    "metric": metric,
                    "tuning_mean": tuner.sign * loss,
                    "held_out": _means(judged, tuner.column),
                }
                content = _content(planned, tuning, type(pipe.scheduler).__name__, scale, evidence)
                ending = "-rescaled" if name == RESCALED else ""
                write_json(out / f"plan-{planned.unguided}{ending}.json", content)
        folder.compact()
    timing = _one_call(held_out, tuple(dict.fromkeys(timed)), repeats=TIMING_REPEATS)
    return Plans(out, read_table(out, "judged"), run(timing, out / "timing", pipe=pipe, mode=mode))


def _one_call(study: Study, variants: tuple[str, ...], *, repeats: int) -> Study:
    """A study of time, with one call of a study's pairs per variant and repeat."""
    prompts, seeds = study.prompts[: study.batch], study.seeds[:1]
    return replace(
        study, variants=variants, prompts=prompts, seeds=seeds, repeats=repeats, metrics=()
    )


def _check(tuning: Study, held_out: Study, scales: Sequence[float]) -> None:
    for what in ("prompts", "seeds"):
        shared = set(getattr(tuning, what)) & set(getattr(held_out, what))
        if shared:
            raise ValueError(f"'{min(shared)}' is among the tuning and the held-out {what}")
    for study in (tuning, held_out):
        require_plain(study)
    if any(scale <= 1 for scale in scales):
        raise ValueError(f"a guidance scale of {min(scales):g} is no guidance")


def _planned(tuner: Tuner, target: Target, tuning: Study, rounds: int) -> Iterator[Planned]:
    if target.bound is not None:
        yield search_within(tuner, target.bound, rounds=rounds)
        return
    numbers = target.unguided
    if target.saving is not None:
        results = run(_one_call(tuning, (BASELINE, "last:50%"), repeats=3), pipe=tuner.pipe)
        ratio, share = guidance_ratio(results), denoise_share(results)
        numbers = (steps_for(target.saving, steps=tuner.steps, ratio=ratio, denoise_share=share),)
    for unguided in numbers:
        yield search(tuner, unguided, rounds=rounds)


def _weaker(pipe: Any, tuning: Study, mask: Mask) -> list[Variant]:
    """Full guidance at the constant scale that comes nearest to a mask, where that is neither none nor all of it."""
    schedule = Variant(PLANNED, lambda _: GuidanceSchedule(mask))
    (scale,) = nearest_scales(pipe, tuning, [schedule], tuple(tuning.pairs)).values()
    return [] if scale is None else [parse(f"scale:{scale:g}")]


def _means(judged: list[dict[str, Any]], column: str) -> dict[str, float]:
    return {
        str(name): float(mean)
        for name, mean in pd.DataFrame(judged).groupby("variant")[column].mean().items()
    }


def _content(
    planned: Planned, study: Study, scheduler: str, scale: float | None, evidence: dict[str, Any]
) -> dict[str, Any]:
    """What stands in a schedule file, which `plan:FILE` and `GuidanceSchedule.load` take."""
    return {
        "mask": mask_text(planned.mask),
        "scheduler": scheduler,
        "model": study.model,
        "num_steps": study.num_steps,
        "guidance_scale": study.guidance_scale,
        **({} if scale is None else {"guided_scale": scale}),
        "evidence": {
            **evidence,
            "tuning_pairs": len(study.pairs),
            "start": planned.start,
            "exchanges": planned.exchanges,
        },
    }
