"""`sdbench gather`: the shards of a study become one study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdbench.cli.console import command, console
from sdbench.cli.options import written
from sdbench.cli.values import write_mode

_Out = Annotated[Path, typer.Argument(help="folder that gets the whole study")]
_Shards = Annotated[list[Path], typer.Argument(help="folders of all shards, in any order")]
_Overwrite = Annotated[bool, written("--overwrite", help="replace the study in OUT")]


@command
def gather(out: _Out, shards: _Shards, overwrite: _Overwrite = False) -> None:
    """Join the shards of a study, which `sdbench run --shard` made, into one study."""
    from sdbench.study.shards import gather as gathered

    results = gathered(out, shards, mode=write_mode(resume=False, overwrite=overwrite, out=out))
    calls = f"{len(results.runs)} calls of {len(shards)} shards"
    console.print(f"{calls} are in {out}", soft_wrap=True)
