"""How every command speaks: the application, its console, errors in one line, tables.

What a command does, and which options it has, stands in the file of its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import typer
from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    import pandas as pd

    from sdbench.study.study import Study

P = ParamSpec("P")

app = typer.Typer(
    help="Measure guided diffusion inference on diffusers pipelines, step by step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # what is not bad input is a plain traceback
)
console = Console(markup=False)  # names of variants and folders may hold brackets

UNBOUNDED = console.options.update(max_width=10_000)
INTERRUPTED = 130  # what a shell reports after Ctrl-C


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Make a function behave as a command: quiet libraries, errors in one line, a polite end.

    Args:
        function: the command. Typer reads its signature through this decorator.

    Raises:
        typer.Exit: code 2 for bad input and for a lack of disk space or memory, code 130 after
            Ctrl-C.
    """

    @wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> None:
        _silence_libraries()
        try:
            function(*args, **options)
        except (ValueError, OSError) as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None
        except typer.Exit:
            raise
        except (MemoryError, RuntimeError) as error:
            from sdbench.models.causes import is_machines

            if not is_machines(error):
                raise
            typer.echo(f"error: out of memory: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as interruption:
            console.print("\nInterrupted.", *getattr(interruption, "__notes__", ()), soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None

    return run


@contextmanager
def resumable(folder: str | Path) -> Iterator[None]:
    """Within this block an interruption says how the command continues in a folder."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        interruption.add_note(
            f"What was finished is in {folder}; continue with --resume --out {folder}"
        )
        raise


def print_table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows under their headings; a long word is folded, never cut."""
    columns = (Column(heading, overflow="fold") for heading in headings)
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_summary(summary: pd.DataFrame, *, wide: bool) -> None:
    """Print what a study found: first what disturbed it, then words, then the table."""
    from sdbench.report.disturbance import disturbance_note
    from sdbench.report.tables import findings, summary_table

    for line in filter(None, (disturbance_note(summary), *findings(summary))):
        console.print(line, markup=False, highlight=False)
    table = summary_table(summary, wide=wide)
    table.title = None  # it stands above the words already
    print_whole(table)


def print_whole(table: Table) -> None:
    """Print a table with every column whole, however wide the terminal is."""
    width = console.width
    console.width = max(width, console.measure(table, options=UNBOUNDED).maximum)
    try:
        console.print(table)
    finally:
        console.width = width


def _silence_libraries() -> None:
    """Silence what torch's profiler and the loaders write past Python's logging."""
    # They read these when they are imported, which a command does later.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


def print_estimate(study: Study) -> None:
    """What a study will take: calls, minutes and memory."""
    from sdbench.models.grammars import doubts
    from sdbench.study.estimate import estimate

    expected = estimate(study)
    pairs = len(study.prompts) * len(study.seeds)
    console.print(
        f"{study.name}: {len(study.variants)} variants on {pairs} pairs of prompt and seed, "
        f"{study.num_steps} steps, w = {study.guidance_scale:g}",
        highlight=False,
    )
    calls, minutes = f"{expected.calls}", f"{expected.seconds / 60:.1f}"
    if expected.most_calls > expected.calls:
        calls += f" to {expected.most_calls}"
        minutes += f" to {expected.most_seconds / 60:.1f}"
    console.print(
        f"{calls} calls, about {minutes} minutes of computing here, "
        f"peak memory of the process about {expected.rss_peak_bytes / 1e9:.1f} GB "
        "(not counting image metrics)"
    )
    if expected.uncounted:
        console.print(f"work not counted: {expected.uncounted}", markup=False, highlight=False)
    for doubt in doubts(study.model, study.prompts):
        console.print(doubt, markup=False, highlight=False, soft_wrap=True)
