"""What observing costs: mini-sd plain against mini-sd under all hooks (`python -m benchmarks.overhead`)."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from sdbench.analysis.stats import Interval, ratio_interval
from sdbench.instruments.clock import clock_for
from sdbench.instruments.steps import StepProbe
from sdbench.models.registry import load
from sdbench.study.call import call_arguments
from sdbench.study.study import Study
from sdbench.study.units import units
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule


def overhead(pipe: Any, study: Study, *, pairs: int) -> Interval:
    """Time under the hooks over time without them, minus one, with its 95 % interval.

    Both run the baseline's first batch; they take turns, each going first in every other pair. `time.perf_counter`
    around the whole call counts everything that the hooks do, the probe's own arithmetic too.
    """
    unit = units(study)[0]

    def plain() -> None:
        pipe(**call_arguments(study, unit, pipe), output_type="pt")

    def hooked() -> None:
        probe = StepProbe(pipe.scheduler, clock_for(pipe.device))
        with guided_by(pipe, GuidanceSchedule.full, listeners=[probe]), probe.call():
            plain()

    seconds: dict[Any, list[float]] = {plain: [], hooked: []}
    for turn in range(-1, pairs):
        for call in (plain, hooked) if turn % 2 else (hooked, plain):
            started = time.perf_counter()
            call()
            if turn >= 0:  # the first pair warms up
                seconds[call].append(time.perf_counter() - started)
    ratio = ratio_interval(seconds[hooked], seconds[plain])
    return Interval(*(value - 1 for value in ratio))


def main(
    pairs: Annotated[int, typer.Option(help="pairs of calls")] = 20,
    steps: Annotated[int, typer.Option(help="denoising steps per call")] = 20,
) -> None:
    """Print what the hooks cost."""
    study = Study.protocol("mini-sd", num_steps=steps)
    cost = overhead(load(study.model), study, pairs=pairs)
    typer.echo(
        f"hooks cost {cost.estimate:+.2%} of the call, 95 % interval [{cost.lo:+.2%}, {cost.hi:+.2%}], {pairs} pairs"
    )


if __name__ == "__main__":
    typer.run(main)
