"""How long a summary takes, and how much memory, by the rows of a study (`python -m benchmarks.reading`)."""

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
STEPS, REPEATS, BATCH, SEEDS = 50, 8, 40, 20
STEPS_PER_BATCH = len(VARIANTS) * REPEATS * STEPS
GUIDED_S, UNGUIDED_S, AROUND_S = 0.04, 0.025, 0.1
FILLERS = {"string": "text", "Int64": 1, "float64": 1.0, "boolean": True}
MIX = 0x9E3779B97F4A7C15  # odd, so that its multiples are as many identifiers, in no order


def write_study(folder: Path, step_rows: int, *, block: int = 20_000) -> None:
    """Write a study of made-up figures: ten variants on every batch of pairs, 8 times, with the images of the first.

    Args:
        folder: gets it.
        step_rows: a multiple of 4,000; there is an image per 10 of them.
        block: calls that are in memory at a time; they are a row group of every table.

    Raises:
        ValueError: another number of rows; the folder is not empty.
    """
    batches, rest = divmod(step_rows, STEPS_PER_BATCH)
    if rest or not batches:
        raise ValueError(f"step_rows must be a multiple of {STEPS_PER_BATCH}, not {step_rows}")
    StudyFolder.create(folder, {"name": "made up"}, environment={}).close()
    calls = step_rows // STEPS
    with ExitStack() as files:
        writers = {}
        for table in STUDY:
            schema = _arrow(empty(table)).schema
            writers[table] = files.enter_context(
                pq.ParquetWriter(folder / f"{table}.parquet", schema)
            )
        for start in range(0, calls, block):
            for table, rows in _rows(np.arange(start, min(start + block, calls)), batches).items():
                writers[table].write_table(_arrow(rows))


def _arrow(table_frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(table_frame, preserve_index=False)


def _rows(calls: NDArray[np.int64], batches: int) -> dict[str, pd.DataFrame]:
    """The three tables of some calls; variants take turns within a batch, batches within a repeat."""
    variant, batch, repeat = (
        calls % len(VARIANTS),
        calls // len(VARIANTS) % batches,
        calls // (len(VARIANTS) * batches),
    )
    generator = np.random.default_rng(int(calls[0]))
    guided = np.arange(STEPS) < STEPS - STEPS // 10 * variant[:, None]
    step_s = np.where(guided, GUIDED_S, UNGUIDED_S) * generator.normal(1, 0.02, guided.shape)
    rows = BATCH * (1 + guided)
    place = {
        "unit": np.array([f"{call * MIX % 2**64:016x}" for call in calls.tolist()], dtype=object),
        "variant": np.array(VARIANTS, dtype=object)[variant],
    }
    timed = {**place, "repeat": repeat, "phase": np.full(len(calls), "measured", dtype=object)}
    runs = timed | {
        **{
            "status": "ok",
            "batch": BATCH,
            "num_steps": STEPS,
            "latency_s": step_s.sum(1) + AROUND_S,
        },
        **{
            "denoise_s": step_s.sum(1),
            "nfe": rows.sum(1) / BATCH,
            "rows": rows.sum(1),
            "flop": rows.sum(1),
        },
    }
    steps = {name: values.repeat(STEPS) for name, values in timed.items()} | {
        **{"step": np.tile(np.arange(STEPS), len(calls)), "guided": guided.ravel()},
        **{"rows": rows.ravel(), "latency_s": step_s.ravel()},
    }
    kept = repeat == 0
    pair = (BATCH * batch[kept, None] + np.arange(BATCH)).ravel()
    names = np.array(
        [f"{prompt:06d}" for prompt in range(-(-BATCH * batches // SEEDS))], dtype=object
    )
    images = {name: values[kept].repeat(BATCH) for name, values in place.items()} | {
        **{"prompt_id": names[pair // SEEDS], "prompt": names[pair // SEEDS], "seed": pair % SEEDS},
        **{
            "lpips": generator.exponential(0.05, len(pair)),
            "alignment": generator.uniform(size=len(pair)),
        },
    }
    return {
        table: _frame(table, values)
        for table, values in zip(STUDY, (runs, steps, images), strict=True)
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
    """What a summary of a study took, reading included; `processor_s` tells a busy machine from slow code."""

    seconds: float
    processor_s: float
    peak_bytes: int


def reading(folder: Path) -> Reading:
    """Summarise a study in a fresh process, and say what it took; of the memory, the process's own is part."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_reading, folder).result()


def _reading(folder: Path) -> Reading:
    started, used = time.perf_counter(), time.process_time()
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
