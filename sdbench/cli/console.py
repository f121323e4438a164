"""How every command speaks: the application, its console, errors in one line, tables.

What a command does, and which options it has, stands in the file of its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import typer
from rich.console import Console
from rich.table import Table

P = ParamSpec("P")

app = typer.Typer(
    help="Guided diffusion inference, measured step by step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # what is not bad input is a plain traceback
)
console = Console(markup=False)  # names of variants and folders may hold brackets

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
    """Print rows under their headings."""
    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _silence_libraries() -> None:
    """Silence what torch's profiler and the loaders write past Python's logging."""
    # They read these when they are imported, which a command does later.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
