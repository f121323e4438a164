"""What branching saves on mini-sd over a call per mask (`python -m benchmarks.branching`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import typer

from sdbench.experiments.branch_choice import branches_of
from sdbench.experiments.branching import Brancher, baseline
from sdbench.models.pipeline import Pipeline
from sdbench.models.registry import load
from sdbench.records.names import BASELINE
from sdbench.study.call import Call, generate
from sdbench.study.generation import Generation
from sdbench.study.images import eight_bit
from sdbench.study.study import Study
from sdbench.variants.schedule import GuidanceSchedule, Mask
from sdbench.variants.variant import Variant


def timed(
    pipe: Pipeline, generation: Generation, kind: str, *, pairs: int, max_rows: int, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of one call per mask, and of branching; both give the images of all masks.

    The two take turns, and each is first in every other round.

    Args:
        pipe: a guided pipeline.
        generation: its prompts, steps and scale.
        kind: of masks, as `branches_of` takes it.
        pairs: (prompt, seed) pairs, the first of the generation's.
        max_rows: of one denoiser evaluation, for the branches.
        rounds: how often both run.
    """
    chosen = tuple(generation.pairs[:pairs])

    # Masks that begin alike stand side by side, as in a sweep.
    of_kind = branches_of(kind, generation.num_steps)
    in_order = sorted(of_kind, key=lambda branch: branch.mask, reverse=True)
    branches = [baseline(generation.num_steps), *in_order]

    def one_by_one() -> None:
        for branch in branches:
            eight_bit(generate(pipe, Call(generation, _variant(branch.mask), chosen)))

    def branched() -> None:
        group = Brancher(pipe, generation, chosen, metrics=(), max_rows=max_rows)
        for call in group.calls(branches):
            group.follow(call)

    seconds_of_rounds = []
    for turn in range(rounds):
        seconds: dict[Callable[[], None], float] = {}
        for way in (one_by_one, branched) if turn % 2 else (branched, one_by_one):
            started = time.perf_counter()
            way()
            seconds[way] = time.perf_counter() - started

        seconds_of_rounds.append((seconds[one_by_one], seconds[branched]))
    return seconds_of_rounds


def _variant(mask: Mask) -> Variant:
    """A mask as a variant by itself."""
    return Variant("mask", lambda _: GuidanceSchedule(mask))


def main(
    rounds: Annotated[int, typer.Option(help="times that both ways run")] = 1,
    steps: Annotated[int, typer.Option(help="denoising steps")] = 50,
    max_rows: Annotated[int, typer.Option(help="rows of one evaluation")] = 64,
) -> None:
    """Print how much faster branches are, for one pair and for eight."""
    study = Study.protocol("mini-sd", num_steps=steps, variants=[BASELINE])
    pipe = load(study.model)
    for pairs in (1, 8):
        for kind in ("single", "last"):
            ways = timed(
                pipe, study.generation, kind, pairs=pairs, max_rows=max_rows, rounds=rounds
            )
            for alone, branched in ways:
                typer.echo(
                    f"{kind}, {pairs} pairs, {max_rows} rows: {alone:.1f} s one by one, "
                    f"{branched:.1f} s branched: {alone / branched:.2f}x"
                )


if __name__ == "__main__":
    typer.run(main)
