"""What lockstep gains, and that it changes nothing but the noise (`python -m benchmarks.lockstep`).

Both ways of timing run in one process, one repeat of each in turn, on the same calls.

    python -m benchmarks.lockstep                          # half widths at equal compute
    python -m benchmarks.lockstep --busy 1                 # the same, with another process at work
    python -m benchmarks.lockstep --repeats 60 --equal     # do both say the same, within 1 point?
    python -m benchmarks.lockstep --width 256 --equal ...  # on a denoiser too large for the cache
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.progress import track

from sdbench.analysis.stats import Interval
from sdbench.analysis.tables import summarise
from sdbench.instruments.rss import PeakRss
from sdbench.models.layout import set_layout
from sdbench.models.pipeline import Pipeline
from sdbench.models.registry import load
from sdbench.records.names import BASELINE
from sdbench.records.store import StudyFolder, read
from sdbench.records.stored import TIMINGS
from sdbench.study.local import Worker
from sdbench.study.runner import record_call
from sdbench.study.study import Study
from sdbench.study.units import units

MASKS = "cfg,last:20%,last:50%,unguided"
MARGIN = 0.01  # of savings that count as equal


@contextmanager
def others(number: int) -> Iterator[None]:
    """Processes that each keep a core busy, for the length of a block."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measured(pipe: Pipeline, study: Study) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Savings by variant, and the peak memory of the process, of each way of timing.

    Args:
        pipe: of the study.
        study: its repeats run by calls and in lockstep in turn; which is first alternates.
    """
    repeats = study.repeats
    assert isinstance(repeats, int)
    with ExitStack() as open_:
        ways = {}
        for timing in TIMINGS:
            own = replace(study, timing=timing)
            worker = open_.enter_context(Worker(own, pipe))
            out = Path(tempfile.mkdtemp()) / timing
            creating = StudyFolder.create(
                out, own.as_json(), environment=worker.environment, mode="new"
            )
            ways[timing] = worker, open_.enter_context(creating)

        peaks = dict.fromkeys(TIMINGS, 0)
        for repeat in track(range(repeats), description="repeats"):
            for timing in TIMINGS if repeat % 2 else reversed(TIMINGS):
                peaks[timing] = max(peaks[timing], repeated(*ways[timing], repeat))

        for _, folder in ways.values():
            folder.compact()
        found = {timing: summarise(read(folder.path)) for timing, (_, folder) in ways.items()}
    return {timing: table.set_index("variant") for timing, table in found.items()}, peaks


def repeated(worker: Worker, folder: StudyFolder, repeat: int) -> int:
    """Run a repeat and write it down; returns the peak memory of the process."""
    measured_units = (unit for unit in units(worker.study) if unit.phase == "measured")
    calls = [unit for unit in measured_units if unit.repeat == repeat]
    with PeakRss() as rss:
        for unit, outcome in worker.outcomes(calls, lambda *_: None):
            record_call(folder, unit, outcome)
    return rss.peak_bytes


def half_width(row: pd.Series[Any], column: str) -> float:
    """Half of an interval's length."""
    return float(row[f"{column}_hi"] - row[f"{column}_lo"]) / 2


def widths(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Half widths of the savings in points, and their ratio, by variant."""
    rows = {}
    for name in found["calls"].index.drop(BASELINE):
        by_way = {
            timing: 100 * half_width(table.loc[name], "saving") for timing, table in found.items()
        }
        rows[name] = by_way | {"ratio": by_way["lockstep"] / by_way["calls"]}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.loc["mean"] = table.mean()
    return table


def differences(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Saving in lockstep less that by calls, with a 90 % interval: the test of equivalence."""
    share = 1.645 / 1.96  # from half widths of 95 % to those of 90 %
    rows = {}
    for name in found["calls"].index.drop(BASELINE):
        own, other = (found[timing].loc[name] for timing in ("lockstep", "calls"))
        difference = float(own["saving"] - other["saving"])
        half = share * (half_width(own, "saving") ** 2 + half_width(other, "saving") ** 2) ** 0.5
        interval = Interval(difference, difference - half, difference + half)
        rows[name] = {end: 100 * value for end, value in interval._asdict().items()}
        rows[name]["equal"] = interval.lo > -MARGIN and interval.hi < MARGIN
        rows[name] |= {timing: 100 * table.loc[name, "saving"] for timing, table in found.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def larger(width: int) -> Pipeline:
    """Stable Diffusion 1.5 with random weights, its UNet narrower: of some hundred megabytes."""
    pipe: Any = load("sd15", random_weights=True, device="cpu")
    # Keys of its class alone: a config also keeps what was noted in it.
    known = inspect.signature(type(pipe.unet).__init__).parameters
    config = {name: value for name, value in pipe.unet.config.items() if name in known}
    config["block_out_channels"] = (width, 2 * width, 4 * width, 4 * width)
    pipe.register_modules(unet=type(pipe.unet)(**config).eval())
    return pipe


def main(
    repeats: Annotated[int, typer.Option(help="of each way of timing")] = 10,
    steps: Annotated[int, typer.Option(help="of a call")] = 16,
    batch: Annotated[int, typer.Option(help="images of a call")] = 8,
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
    busy: Annotated[int, typer.Option(help="other processes at work")] = 0,
    variants: Annotated[str, typer.Option(help="with commas; by default six")] = "",
    width: Annotated[int, typer.Option(help="of a UNet with random weights; 0: mini-sd")] = 0,
    equal: Annotated[bool, typer.Option("--equal", help="test equivalence")] = False,
) -> None:
    """Print half widths, or how far both ways of timing differ."""
    pipe = larger(width) if width else load("mini-sd")
    set_layout(pipe, memory_format="channels_last", threads=threads)
    own = variants or (f"{MASKS},steps:{steps // 2}" + ("" if width else ",lora"))
    study = Study.protocol(
        "mini-sd",
        variants=own.split(","),
        controls=False,
        repeats=repeats,
        num_steps=steps,
        random_weights=bool(width),
        **({"height": 128, "width": 128, "metrics": ()} if width else {"metrics": ()}),
    )
    study = replace(study, prompts=study.prompts[:batch], batch=batch)
    with others(busy):
        found, peaks = measured(pipe, study)
    table = differences(found) if equal else widths(found)
    typer.echo(table.to_string(float_format=lambda value: f"{value:.2f}"))
    sizes = ", ".join(f"{timing} {peak / 1e6:.0f} MB" for timing, peak in peaks.items())
    typer.echo(f"{repeats} repeats of {steps} steps; peak memory of the process: {sizes}")


if __name__ == "__main__":
    typer.run(main)
