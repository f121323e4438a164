import inspect

import pytest
import torch
import typer
from typer.testing import CliRunner

from sdbench.cli.console import command, resumable


def ended(error, folder=None):
    """A command that ends in an error, within a resumable block where there is a folder."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @command
    def main():
        if folder is None:
            raise error
        with resumable(folder):
            raise error

    return CliRunner().invoke(app)


@pytest.mark.parametrize("error", [ValueError("no\n such"), OSError("no such")])
def test_bad_input_is_one_line(error):
    done = ended(error)
    assert done.exit_code == 2
    assert done.stderr == "error: no such\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("Unable to allocate\n 2 GiB"), "Unable to allocate 2 GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "DefaultCPUAllocator: can't"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "CUDA out of memory. Tried"),
    ],
)
def test_a_lack_of_memory_is_one_line(error, line):
    done = ended(error)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: out of memory: {line}")
    assert done.stderr.count("\n") == 1


def test_an_exit_keeps_its_code():
    assert ended(typer.Exit(1)).exit_code == 1


@pytest.mark.parametrize("error", [RuntimeError("the loop runs on"), ZeroDivisionError()])
def test_another_error_is_not_taken_for_a_lack_of_memory(error):
    assert ended(error).exception is error


def test_our_own_mistakes_are_not_hidden():
    assert isinstance(ended(KeyError("key")).exception, KeyError)


@pytest.mark.parametrize("folder", [None, "results/mine"])
def test_an_interruption_ends_in_code_130(folder):
    done = ended(KeyboardInterrupt(), folder)
    assert done.exit_code == 130
    assert ("--resume --out results/mine" in done.output) == (folder is not None)


def test_a_command_keeps_its_signature():
    def main(steps: int, *, scale: float = 7.5) -> None:
        """Say something."""

    assert inspect.signature(command(main)) == inspect.signature(main)
    assert command(main).__doc__ == main.__doc__
