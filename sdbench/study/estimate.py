"""What a study will take, from one short call of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

from sdbench.models.pipeline import Pipeline
from sdbench.records.names import BASELINE
from sdbench.records.stopping import looks
from sdbench.study.check import loaded, loop_length, prepare
from sdbench.study.known import known_units
from sdbench.study.observation import observe
from sdbench.study.study import Study
from sdbench.study.tuning import tunable, tuning_rows
from sdbench.study.units import Unit, batches_of, units
from sdbench.variants.grammar import parse


@dataclass(frozen=True)
class Estimate:
    """What a study will take: calls, seconds of computing, and the peak memory of a trial.

    The seconds hold those of known answers, whose calls are not counted. Neither are repeats that
    are measured again because they were disturbed.

    Attributes:
        calls: at least; where repeats end by a precision there may be `most_calls`.
        seconds: of so many calls.
        most_calls: of as many repeats as there may be.
        most_seconds: of so many calls.
        rss_peak_bytes: of the process.
        uncounted: why the work cannot be counted; empty where it can.
    """

    calls: int
    seconds: float
    most_calls: int
    most_seconds: float
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
    study = study.making(work.output)
    fewest, *_, most = (*looks(study.repeats), looks(study.repeats)[-1])
    planned = [_with_scales_to_be_found(study, repeats) for repeats in (fewest, most)]

    # The second call counts: the first one warms up.
    baseline = replace(parse(BASELINE), num_steps=steps, stock_start=True)
    short = Unit(study, baseline, planned[0][0].pairs, 0, "measured")
    observe(pipe, short, work)
    measured, *_ = observe(pipe, short, work)
    row_s = measured["denoise_s"] / measured["rows"]
    other_s = (measured["text_s"] + measured["decode_s"]) / len(short.pairs)
    listed = loop_length(pipe, study) if study.lists_steps else None

    def seconds(calls: list[Unit]) -> float:
        further = chain.from_iterable(known_units(study).values())
        total = tuning_rows(study) * row_s
        for unit in (*calls, *further):
            nfe = unit.variant.rule(listed or unit.call.num_steps).nfe
            total += len(unit.pairs) * (nfe * row_s + other_s)
        return total

    return Estimate(
        calls=len(planned[0]),
        seconds=seconds(planned[0]),
        most_calls=len(planned[1]),
        most_seconds=seconds(planned[1]),
        rss_peak_bytes=measured["rss_peak_bytes"],
        uncounted=work.uncounted,
    )


def _with_scales_to_be_found(study: Study, repeats: int) -> list[Unit]:
    """The calls of so many repeats, and one of the baseline for each control that is to be found.

    A constant scale costs what the baseline costs, and runs once.
    """
    batches = batches_of(study)
    calls = units(study, repeats=dict.fromkeys(batches, repeats))
    once = [unit for unit in calls if unit.variant.is_baseline and unit.phase == "measured"]
    return [*calls, *once[: len(batches)] * len(tunable(study))]
