"""The command line: arguments to one library call, results to text and pictures, bad input to one line and exit code 2.

The library is imported inside the commands, so that `sdbench --help` loads no torch.
"""

from sdbench.cli import running, exploring, comparing, reading, listing  # noqa: F401, I001 - `--help` lists in this order
from sdbench.cli.console import app

__all__ = ["app"]
