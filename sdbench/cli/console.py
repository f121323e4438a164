"""How every command speaks: the application, its console, errors in one line, tables, and libraries that are silent."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="Guided diffusion inference, measured step by step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(markup=False)  # names of variants and folders may hold brackets
INTERRUPTED = 130


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input ends with one line on stderr and exit code 2, and so does a disk without space."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        typer.echo(f"error: {text}", err=True)
        raise typer.Exit(2) from None


def print_table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows under their headings."""
    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def quiet() -> None:
    """Silence what torch's profiler and the loaders write past Python's logging; set before torch is imported."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
