"""What lockstep gains, and that it changes nothing but the noise (`python -m benchmarks.lockstep`).

Both ways of timing run in one process, one repeat of each in turn, on the same calls.

    python -m benchmarks.lockstep                          # half widths at equal compute
    python -m benchmarks.lockstep --busy 1                 # the same, with another process at work
    python -m benchmarks.lockstep --repeats 400 --steps 4 --batch 1 --equal  # do both say the same?
    python -m benchmarks.lockstep --width 64 --equal ...  # on a denoiser too large for the cache
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
from scipy.stats import bootstrap

from sdbench.analysis.calls import timed
from sdbench.analysis.tables import summarise
from sdbench.instruments.rss import PeakRss
from sdbench.models.layout import set_layout
from sdbench.models.pipeline import Pipeline
from sdbench.models.registry import load
from sdbench.records.call_times import call_times
from sdbench.records.names import BASELINE
from sdbench.records.slices import location
from sdbench.records.store import Results, StudyFolder, read
from sdbench.records.stored import TIMINGS
from sdbench.study.local import Worker
from sdbench.study.runner import record_call
from sdbench.study.study import Study
from sdbench.study.units import units

MASKS = "cfg,last:20%,last:50%,unguided"
MARGIN = 1.0  # points between savings that count as equal


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


def measured(pipe: Pipeline, study: Study) -> tuple[dict[str, Results], dict[str, int]]:
    """Tables, and the peak memory of the process, of each way of timing.

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
        return {timing: read(folder.path) for timing, (_, folder) in ways.items()}, peaks


def repeated(worker: Worker, folder: StudyFolder, repeat: int) -> int:
    """Run a repeat and write it down; returns the peak memory of the process."""
    measured_units = (unit for unit in units(worker.study) if unit.phase == "measured")
    calls = [unit for unit in measured_units if unit.repeat == repeat]
    with PeakRss() as rss:
        for unit, outcome in worker.outcomes(calls, lambda *_: None):
            record_call(folder, unit, outcome)
    return rss.peak_bytes


def widths(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Half widths of the savings in points, and their ratio, by variant.

    Args:
        found: summaries, of each way.
    """
    tables = {way: table.set_index("variant").drop(BASELINE) for way, table in found.items()}
    table = pd.DataFrame(
        {way: 50 * (own["saving_hi"] - own["saving_lo"]) for way, own in tables.items()}
    )
    table["ratio"] = table["lockstep"] / table["calls"]
    table.loc["mean"] = table.mean()
    return table


def savings(results: Results) -> pd.DataFrame:
    """Time saved by each variant (columns) in each repeat, in points."""
    calls = timed(results)
    times = call_times(calls, results.runs, results.steps)
    saved = 100 * (1 - times["latency_s"] / times["baseline_latency_s"])
    table = calls.assign(saved=saved).pivot_table(
        index="repeat", columns="variant", values="saved", observed=True
    )
    return table.drop(columns=BASELINE)


def differences(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Saving in lockstep less that by calls, with a 90 % interval: the test of equivalence.

    A difference is taken in every repeat, whose two ways ran one after the other. Calls have heavy
    tails, so the middle of the differences counts, which a few of them do not move.

    Args:
        found: savings by repeat and variant, of each way.
    """
    apart = (found["lockstep"] - found["calls"]).dropna()
    rows = {}
    for name, values in apart.items():
        drawn = bootstrap(
            (values.to_numpy(float),), location, confidence_level=0.9, method="percentile", rng=0
        )
        lo, hi = drawn.confidence_interval
        rows[name] = {"difference": float(location(values)), "lo": lo, "hi": hi}
        rows[name]["equal"] = lo > -MARGIN and hi < MARGIN
        rows[name] |= {timing: float(location(table[name])) for timing, table in found.items()}
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
    if equal:
        table = differences({way: savings(results) for way, results in found.items()})
    else:
        table = widths({way: summarise(results) for way, results in found.items()})
    typer.echo(table.to_string(float_format=lambda value: f"{value:.2f}"))
    sizes = ", ".join(f"{timing} {peak / 1e6:.0f} MB" for timing, peak in peaks.items())
    typer.echo(f"{repeats} repeats of {steps} steps; peak memory of the process: {sizes}")


if __name__ == "__main__":
    typer.run(main)
