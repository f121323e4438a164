"""What observing costs: mini-sd plain, and under all hooks (`python -m benchmarks.overhead`).

With `--in-flight 6`, six calls take turns under the hooks, and run one after another without them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import typer

from sdbench.analysis.stats import Interval, ratio_interval
from sdbench.instruments.clock import clock_for
from sdbench.instruments.steps import GiveWay, StepProbe
from sdbench.models.pipeline import Pipeline, invoke
from sdbench.models.registry import load
from sdbench.study.call import OUTPUT_TYPES
from sdbench.study.lockstep import take_turns
from sdbench.study.study import Study
from sdbench.study.units import units
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule


def overhead(pipe: Pipeline, study: Study, *, pairs: int, in_flight: int = 1) -> Interval:
    """Time under the hooks over time without them, minus one, with its 95 % interval.

    Both run the baseline's first batch. They take turns, and each is first in every other pair.
    `time.perf_counter` around the whole call counts everything that the hooks do, the probe's own
    arithmetic too.

    Args:
        pipe: a guided pipeline.
        study: whose first call runs.
        pairs: of plain and of observed calls.
        in_flight: calls on either side of a pair; the observed ones take turns.
    """
    call = units(study)[0].call

    def once(own: Pipeline) -> None:
        invoke(own, call.arguments(own) | {"output_type": OUTPUT_TYPES["image"]})

    def observed(own: Pipeline, give_way: GiveWay | None = None) -> None:
        probe = StepProbe(own.scheduler, clock_for(own.device), give_way)
        with guided_by(own, GuidanceSchedule.full, listeners=[probe]), probe.call():
            once(own)

    def plain() -> None:
        for _ in range(in_flight):
            once(pipe)

    def hooked() -> None:
        if in_flight == 1:
            observed(pipe)
        else:
            take_turns(pipe, [observed] * in_flight, seed="0")

    # Neither place in a pair is favoured by a drift of the machine.
    seconds: dict[Callable[[], None], list[float]] = {plain: [], hooked: []}
    for turn in range(-1, pairs):
        for way in (plain, hooked) if turn % 2 else (hooked, plain):
            started = time.perf_counter()
            way()
            if turn >= 0:  # the first pair warms up
                seconds[way].append(time.perf_counter() - started)

    ratio = ratio_interval(seconds[hooked], seconds[plain])
    return Interval(*(value - 1 for value in ratio))


def main(
    pairs: Annotated[int, typer.Option(help="pairs of calls")] = 20,
    steps: Annotated[int, typer.Option(help="denoising steps per call")] = 20,
    in_flight: Annotated[int, typer.Option(help="calls that take turns")] = 1,
) -> None:
    """Print what the hooks cost."""
    study = Study.protocol("mini-sd", num_steps=steps)
    cost = overhead(load(study.model), study, pairs=pairs, in_flight=in_flight)
    typer.echo(
        f"hooks cost {cost.estimate:+.2%} of the call, "
        f"95 % interval [{cost.lo:+.2%}, {cost.hi:+.2%}], {pairs} pairs"
    )


if __name__ == "__main__":
    typer.run(main)
