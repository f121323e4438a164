"""What branching saves on mini-sd over a call per mask (`python -m benchmarks.branching`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from sdbench.experiments.branching import Brancher, baseline
from sdbench.experiments.sensitivity import branches_of
from sdbench.models.registry import load
from sdbench.study.call import call_arguments
from sdbench.study.images import eight_bit
from sdbench.study.study import Study
from sdbench.study.units import Unit
from sdbench.variants.guidance import guided_by
from sdbench.variants.registry import parse
from sdbench.variants.schedule import GuidanceSchedule


def timed(
    pipe: Any, study: Study, kind: str, *, pairs: int, max_rows: int, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of one call per mask and of branching, in turn, each first in every other round; images both."""
    chosen = tuple(study.pairs[:pairs])
    arguments = Unit(study, parse("cfg"), chosen, 0, "measured")
    branches = branches_of(kind, study.num_steps)
    whole = baseline(study.num_steps)

    def one_by_one() -> None:
        for branch in (whole, *branches):
            with guided_by(pipe, GuidanceSchedule(branch.mask)):
                eight_bit(pipe(**call_arguments(study, arguments, pipe), output_type="pt").images)

    def branched() -> None:
        group = Brancher(pipe, study, chosen, max_rows)
        for call in group.calls(
            [whole, *sorted(branches, key=lambda branch: branch.mask, reverse=True)]
        ):
            group.follow(call)

    found = []
    for turn in range(rounds):
        seconds: dict[Callable[[], None], float] = {}
        for way in (one_by_one, branched) if turn % 2 else (branched, one_by_one):
            started = time.perf_counter()
            way()
            seconds[way] = time.perf_counter() - started
        found.append((seconds[one_by_one], seconds[branched]))
    return found


def main(
    rounds: Annotated[int, typer.Option(help="times that both ways run")] = 1,
    steps: Annotated[int, typer.Option(help="denoising steps")] = 50,
    max_rows: Annotated[int, typer.Option(help="rows of one evaluation")] = 64,
) -> None:
    """Print how much faster branches are, for one pair and for eight."""
    study = Study.protocol("mini-sd", num_steps=steps, variants=["cfg"], metrics=[])
    pipe = load(study.model)
    for pairs in (1, 8):
        for kind in ("single", "last"):
            for alone, branched in timed(
                pipe, study, kind, pairs=pairs, max_rows=max_rows, rounds=rounds
            ):
                typer.echo(
                    f"{kind}, {pairs} pairs, {max_rows} rows: {alone:.1f} s one by one, {branched:.1f} s branched: "
                    f"{alone / branched:.2f}x"
                )


if __name__ == "__main__":
    typer.run(main)
