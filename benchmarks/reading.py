"""Time and memory of a summary, by the rows of a study (`python -m benchmarks.reading`)."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from numpy.typing import NDArray

from sdbench.analysis.tables import summarise
from sdbench.instruments.rss import PeakRss
from sdbench.records.schema import STUDY, columns, empty
from sdbench.records.store import StudyFolder

VARIANTS = ("cfg", *(f"last:{10 * tenth}%" for tenth in range(1, 10)))
STEPS = 50
REPEATS = 8
BATCH = 40
SEEDS = 20
STEPS_PER_BATCH = len(VARIANTS) * REPEATS * STEPS
GUIDED_S = 0.04
UNGUIDED_S = 0.025
AROUND_S = 0.1
FILLERS = {"string": "text", "Int64": 1, "float64": 1.0, "boolean": True}
MIX = 0x9E3779B97F4A7C15  # odd, so that its multiples are distinct identifiers, in no order

Columns = dict[str, Any]
"""Values of a table by column: an array, or one value for all rows."""


def write_study(folder: Path, step_rows: int, *, block: int = 20_000) -> None:
    """Write a study of made-up figures.

    Ten variants run on every batch of pairs, 8 times, and the images of the first time are kept.

    Args:
        folder: gets it.
        step_rows: a multiple of 4,000; there is an image per 10 of them.
        block: calls that are in memory at a time; they are a row group of every table.

    Raises:
        ValueError: another number of rows; the folder is not empty.
    """
    # Only whole batches: every variant has every pair.
    batches, rest = divmod(step_rows, STEPS_PER_BATCH)
    if rest or not batches:
        raise ValueError(f"step_rows must be a multiple of {STEPS_PER_BATCH}, not {step_rows}")
    StudyFolder.create(folder, {"name": "made up"}, environment={}).close()

    calls = step_rows // STEPS
    with ExitStack() as files:
        writers = {}
        for table in STUDY:
            writer = pq.ParquetWriter(folder / f"{table}.parquet", _arrow(empty(table)).schema)
            writers[table] = files.enter_context(writer)

        for start in range(0, calls, block):
            numbers = np.arange(start, min(start + block, calls))
            for table, rows in _tables(numbers, batches).items():
                writers[table].write_table(_arrow(rows))


def _arrow(table_frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(table_frame, preserve_index=False)


def _tables(calls: NDArray[np.int64], batches: int) -> dict[str, pd.DataFrame]:
    """The three tables of some calls, by their numbers."""
    # Variants take turns within a batch, batches within a repeat.
    variant = calls % len(VARIANTS)
    batch = calls // len(VARIANTS) % batches
    repeat = calls // (len(VARIANTS) * batches)

    names = [f"{call * MIX % 2**64:016x}" for call in calls.tolist()]
    place: Columns = {
        "unit": np.array(names, dtype=object),
        "variant": np.array(VARIANTS, dtype=object)[variant],
    }
    phase = np.full(len(calls), "measured", dtype=object)
    timed = {**place, "repeat": repeat, "phase": phase}

    rng = np.random.default_rng(int(calls[0]))
    guided = np.arange(STEPS) < STEPS - STEPS // 10 * variant[:, None]
    step_s = np.where(guided, GUIDED_S, UNGUIDED_S) * rng.normal(1, 0.02, guided.shape)

    # Images of the first repeat are kept.
    kept = repeat == 0
    of_images = {name: values[kept].repeat(BATCH) for name, values in place.items()}
    of_steps = {name: values.repeat(STEPS) for name, values in timed.items()}
    return {
        "runs": _frame("runs", timed | _runs(guided, step_s)),
        "steps": _frame("steps", of_steps | _steps(guided, step_s)),
        "images": _frame("images", of_images | _images(batch[kept], batches, rng)),
    }


def _runs(guided: NDArray[np.bool_], step_s: NDArray[np.float64]) -> Columns:
    """What the calls took, from their steps: (calls, steps)."""
    rows = (BATCH * (1 + guided)).sum(1)
    return {
        "status": "ok",
        "batch": BATCH,
        "num_steps": STEPS,
        "latency_s": step_s.sum(1) + AROUND_S,
        "denoise_s": step_s.sum(1),
        "nfe": rows / BATCH,
        "rows": rows,
        "flop": rows,
    }


def _steps(guided: NDArray[np.bool_], step_s: NDArray[np.float64]) -> Columns:
    """What the steps took: (calls, steps)."""
    return {
        "step": np.tile(np.arange(STEPS), len(guided)),
        "guided": guided.ravel(),
        "rows": (BATCH * (1 + guided)).ravel(),
        "latency_s": step_s.ravel(),
    }


def _images(batch: NDArray[np.int64], batches: int, rng: np.random.Generator) -> Columns:
    """The images of calls, from the numbers of their batches."""
    pair = (BATCH * batch[:, None] + np.arange(BATCH)).ravel()
    prompts = -(-BATCH * batches // SEEDS)  # rounded up
    names = np.array([f"{prompt:06d}" for prompt in range(prompts)], dtype=object)
    return {
        "prompt_id": names[pair // SEEDS],
        "prompt": names[pair // SEEDS],
        "seed": pair % SEEDS,
        "lpips": rng.exponential(0.05, len(pair)),
        "alignment": rng.uniform(size=len(pair)),
    }


def _frame(table: str, values: dict[str, Any]) -> pd.DataFrame:
    """A table of some columns; the others are missing, or filled where they must not be."""
    index = pd.RangeIndex(len(values["unit"]))
    typed = {}
    for name, column in columns(table).items():
        value = values.get(name, None if column.nullable else FILLERS[column.dtype])
        typed[name] = pd.Series(value, index=index, dtype=column.dtype)
    return pd.DataFrame(typed)


class Reading(NamedTuple):
    """What a summary of a study took, reading included.

    Attributes:
        seconds: by the clock.
        processor_s: of the processor, which tells a busy machine from slow code.
        peak_bytes: resident, the process itself included.
    """

    seconds: float
    processor_s: float
    peak_bytes: int


def reading(folder: Path) -> Reading:
    """Summarise a study in a fresh process, and say what it took."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_reading, folder).result()


def _reading(folder: Path) -> Reading:
    started = time.perf_counter()
    used = time.process_time()
    with PeakRss() as rss:
        summarise(folder)
    return Reading(time.perf_counter() - started, time.process_time() - used, rss.peak_bytes)


def main(
    rows: Annotated[
        list[int] | None, typer.Option(help="of steps; 10^5, 10^6 and 10^7 by default")
    ] = None,
) -> None:
    """Print what the summary of a study takes, for several sizes."""
    for step_rows in rows or (10**5, 10**6, 10**7):
        with tempfile.TemporaryDirectory() as folder:
            study = Path(folder) / "study"
            write_study(study, step_rows)
            took = reading(study)
        typer.echo(
            f"{step_rows:,} step rows, {step_rows // 10:,} images: {took.seconds:.1f} s, "
            f"{took.processor_s:.1f} s of processor time, peak RSS {took.peak_bytes / 1e9:.2f} GB"
        )


if __name__ == "__main__":
    typer.run(main)
