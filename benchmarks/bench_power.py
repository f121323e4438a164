"""What `sdbench bench` finds on this machine: `python -m benchmarks.bench_power`.

The benchmark runs several times. Every run is compared with every other: as it is, where nothing
may be found, and with all steps of one variant made slower by some per cent, which has to be found.
With `--busy 1` another process keeps a core busy meanwhile.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.lockstep import others
from sdbench.analysis.regression import compare
from sdbench.analysis.timing import RATIO
from sdbench.models.layout import set_layout
from sdbench.models.registry import load
from sdbench.records.names import BASELINE
from sdbench.records.store import Results, read
from sdbench.study.runner import record
from sdbench.study.study import Study

TIMES = ("latency_s", "denoise_s")


def slower(results: Results, variant: str, share: float) -> Results:
    """A run in which every step of a variant took longer by some share."""
    runs, steps = results.runs.copy(), results.steps.copy()
    runs.loc[runs["variant"] == variant, list(TIMES)] *= 1 + share
    steps.loc[steps["variant"] == variant, "latency_s"] *= 1 + share
    return replace(results, runs=runs, steps=steps)


def verdicts(before: Results, after: Results) -> dict[str, str]:
    """What a comparison says of the ratios of times, by variant."""
    table = compare(before, after)
    ratios = table[table["figure"] == RATIO]
    return dict(zip(ratios["variant"], ratios["verdict"], strict=True))


def main(
    runs: Annotated[int, typer.Option(help="of the benchmark")] = 6,
    busy: Annotated[int, typer.Option(help="other processes at work")] = 0,
    repeats: Annotated[int, typer.Option(help="0: those of the benchmark")] = 0,
) -> None:
    """Print the share of comparisons that find a slowdown, and of those that find one of none."""
    study = Study.protocol("mini-sd-bench", **({"repeats": repeats} if repeats else {}))
    pipe = load(study.model)
    set_layout(pipe, memory_format=study.memory_format, threads=study.threads)
    found, seconds = [], []
    with others(busy):
        for place in range(runs):
            started = time.perf_counter()
            out = Path(tempfile.mkdtemp()) / str(place)
            found.append(read(record(study, out, pipe=pipe)))
            seconds.append(time.perf_counter() - started)
    typer.echo(f"a run takes {statistics.median(seconds):.0f} s (at most {max(seconds):.0f})")

    for share in (0.0, 0.03, 0.05, 0.10):
        hits, alarms = judged(found, share)
        if share:
            typer.echo(f"{share:.0%} slower: found in {np.mean(hits):.0%} of {len(hits)}")
        else:
            typer.echo(f"nothing slower: an alarm in {np.mean(alarms):.0%} of {len(alarms)}")


def judged(found: list[Results], share: float) -> tuple[list[bool], list[bool]]:
    """Of all comparisons of two runs: whether the slower variant was found, and whether any.

    Args:
        found: runs of the benchmark.
        share: by which one variant of the later run is slower, each in turn.
    """
    names = [str(name) for name in found[0].runs["variant"].unique() if name != BASELINE]
    hits, alarms = [], []
    for before, after in permutations(found, 2):
        for name in names if share else names[:1]:
            said = verdicts(before, slower(after, name, share))
            hits.append(said[name] == "regression")
            alarms.append("regression" in said.values())
    return hits, alarms


if __name__ == "__main__":
    typer.run(main)
