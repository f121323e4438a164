"""`accelerate launch -m sdbench.distill ...`: the command `sdbench distill` in several processes."""

import sys

import typer

from sdbench.distill.command import distill

if __name__ == "__main__":
    try:
        typer.run(distill)
    except ValueError as error:
        sys.exit(f"error: {error}")
