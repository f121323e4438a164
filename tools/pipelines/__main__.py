"""Which pipelines of diffusers a guidance schedule works on: `python -m tools.pipelines`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings

import diffusers
import torch

from tools.pipelines import runner, table
from tools.pipelines.classes import exported
from tools.pipelines.outcomes import BAD


def main() -> int:
    """Run the classes that are asked for; all of them make the support table."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # threads do not outlive a fork
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the processes, too

    asked = _arguments()
    for module, error in runner.load_recipes().items():
        _say(f"recipes/{module}.py cannot be imported: {error}")
    kinds = exported()
    if unknown := [name for name in asked.names if name not in kinds]:
        raise SystemExit(f"diffusers exports no pipeline {', '.join(unknown)}")
    chosen = {name: kinds[name] for name in asked.names or kinds}

    rows = []
    for row in runner.results(chosen, jobs=asked.jobs, again=asked.again):
        rows.append(row)
        _say(f"{row['name']}: {row['outcome']} {row['reason']}".strip())

    found = table.frame(rows, diffusers.__version__)
    _say("\n" + table.counts(found).to_string(index=False))
    _say(table.summary(found))
    if not asked.names:
        table.write(found)
    return int(any(row["outcome"] in BAD for row in rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.pipelines", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="CLASS", help="only these; no table is written")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--again", action="store_true", help="also what is up to date")
    return parser.parse_args()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
