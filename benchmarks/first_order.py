"""The first-order estimate beside the exact sweep (`python -m benchmarks.first_order`).

The exact curve of the 64 held-out captions is the stored one, where the model is still the same.
Both ways are timed on a few of them, in turn, in one run. Prints Markdown.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import spearmanr

from sdbench.experiments.branch_choice import BranchChoice
from sdbench.experiments.first_order import Follower
from sdbench.experiments.sensitivity import sweep
from sdbench.instruments.memory import AllocatorTrace
from sdbench.models.identity import identity
from sdbench.models.pipeline import Pipeline
from sdbench.models.registry import load
from sdbench.records.store import Sweep, read_sweep
from sdbench.study.call import Call, generate
from sdbench.study.generation import Generation
from sdbench.variants.grammar import parse

STORED = Path("results/mini-sd/sensitivity-single")
SMALLEST = 1e-7  # LPIPS that is added before logs are taken
DRAWS = 1000  # of captions, for a sweep of fewer of them


def by_step(results: Sweep, kind: str) -> NDArray[np.float64]:
    """LPIPS by image and step."""
    table = results.sensitivity
    table = table[table["kind"] == kind]
    return table.pivot(index=["prompt_id", "seed"], columns="start", values="lpips").to_numpy(float)


def rows_of(results: Sweep) -> float:
    """Denoiser rows per image."""
    table = results.sensitivity
    return float(table.groupby(["prompt_id", "seed"])["rows"].sum().mean())


def likeness(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's correlation of two curves."""
    return float(spearmanr(one, other).statistic)


def of_fewer(exact: NDArray[np.float64], images: int) -> NDArray[np.float64]:
    """How like the curve of some images is to that of all, for random draws of them."""
    rng = np.random.default_rng(0)
    draws = [rng.permutation(len(exact))[:images] for _ in range(DRAWS)]
    return np.array([likeness(exact[own].mean(axis=0), exact.mean(axis=0)) for own in draws])


def fewer_steps(steps: int, rows: float) -> int:
    """Steps of a loop whose exact sweep takes at most so many rows an image: M (M + 1)."""
    return max(count for count in range(1, steps + 1) if count * (count + 1) <= rows)


def stretched(curve: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """The curve of a shorter loop at the steps of a longer one, by share of the loop, in logs."""
    places = (np.arange(len(curve)) + 0.5) / len(curve)
    wanted = (np.arange(steps) + 0.5) / steps
    return np.exp(np.interp(wanted, places, np.log(curve + SMALLEST)))


def seconds_of(way: Callable[[], Any]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def timed(pipe: Pipeline, generation: Generation, turn: int) -> dict[str, float]:
    """Seconds of the exact sweep and of the estimate; each is first in every other turn."""
    order = ("estimate", "single") if turn % 2 else ("single", "estimate")
    return {
        kind: seconds_of(partial(sweep, pipe, generation, BranchChoice(kind))) for kind in order
    }


def peak_bytes(way: Callable[[], Any]) -> int:
    """The most that torch's allocator held on the CPU for something."""
    with AllocatorTrace() as trace:
        way()
    return trace.peak_bytes


def main(
    stored: Annotated[Path, typer.Option(help="folder of an exact sweep")] = STORED,
    captions: Annotated[int, typer.Option(help="that are timed")] = 4,
    rounds: Annotated[int, typer.Option(help="times that both ways are timed")] = 2,
) -> None:
    """Print how like the estimate is to the exact sweep, and what both take."""
    exact = read_sweep(stored)
    names = {"prompts", "seeds", "num_steps", "guidance_scale", "batch"}
    fields = {name: exact.study[name] for name in names}
    generation = Generation(model=exact.study["model"], **fields)
    pipe = load(generation.model)
    if identity(pipe) != exact.study["pipeline"]:
        raise SystemExit(f"{stored} is of other weights: make it again")

    found = sweep(pipe, generation, BranchChoice("estimate"))
    true, made = by_step(exact, "single"), by_step(found, "estimate")
    spent, whole = rows_of(found), rows_of(exact)
    fewer = round(len(true) * spent / whole)
    draws = np.quantile(of_fewer(true, fewer), (0.05, 0.5, 0.95))
    typer.echo(f"\n| {len(true)} captions, {generation.num_steps} steps | estimate | exact |")
    typer.echo("|---|---:|---:|")
    typer.echo(f"| denoiser rows per image | {spent:.0f} | {whole:.0f} |")
    typer.echo(f"| Spearman, means | {likeness(made.mean(0), true.mean(0)):.3f} | 1 |")
    typer.echo(
        f"| Spearman, means of {fewer} random captions swept, the same rows | "
        f"| {draws[1]:.2f} [{draws[0]:.2f}, {draws[2]:.2f}] |"
    )
    few = fewer_steps(generation.num_steps, spent)
    shorter = sweep(pipe, replace(generation, num_steps=few), BranchChoice("single"))
    curve = stretched(by_step(shorter, "single").mean(0), generation.num_steps)
    typer.echo(
        f"| Spearman, exact sweep of {few} steps, {rows_of(shorter):.0f} rows | "
        f"| {likeness(curve, true.mean(0)):.3f} |"
    )
    each = [likeness(one, other) for one, other in zip(made, true, strict=True)]
    typer.echo(f"| Spearman, median of single captions | {np.median(each):.3f} | 1 |")
    _print_curves(made, true)

    _print_memory(pipe, replace(generation, prompts=generation.prompts[:1]))
    _print_times(pipe, replace(generation, prompts=generation.prompts[:captions]), rounds)


def _print_curves(made: NDArray[np.float64], true: NDArray[np.float64]) -> None:
    """Both curves, step by step."""
    typer.echo("\n| step | estimate | exact |")
    typer.echo("|---:|---:|---:|")
    for step, (one, other) in enumerate(zip(made.mean(0), true.mean(0), strict=True)):
        typer.echo(f"| {step} | {one:.6f} | {other:.6f} |")


def _print_times(pipe: Pipeline, generation: Generation, rounds: int) -> None:
    """Seconds of both ways, after a first estimate that loads what both need."""
    sweep(pipe, generation, BranchChoice("estimate"))
    for turn in range(rounds):
        seconds = timed(pipe, generation, turn)
        exact_s, estimate_s = seconds["single"], seconds["estimate"]
        typer.echo(
            f"{len(generation.prompts)} captions: {exact_s:.1f} s exact, {estimate_s:.1f} s "
            f"estimated: {exact_s / estimate_s:.1f}x"
        )


def _print_memory(pipe: Pipeline, generation: Generation) -> None:
    """What torch's allocator holds for one image, for loops of several lengths."""
    typer.echo("\n| steps | guided call, MB | estimate, MB |")
    typer.echo("|---:|---:|---:|")
    for steps in (10, 20, 40):
        of = replace(generation, num_steps=steps)
        call = Call(of, parse("cfg"), tuple(of.pairs))
        plain = peak_bytes(partial(generate, pipe, call))
        follower = Follower(pipe, of, tuple(of.pairs), metrics=["lpips"])
        back = peak_bytes(partial(getattr, follower, "effects"))
        typer.echo(f"| {steps} | {plain / 1e6:.0f} | {back / 1e6:.0f} |")


if __name__ == "__main__":
    typer.run(main)
