"""Runs the notebooks: `python tools/notebooks.py` at a small size, `--refresh` from `results/`.

They run side by side, one on each core. Anew, every notebook computes on mini-sd all that it shows,
and the committed file stays as it is; `--refresh` rewrites it. Either way an error, a warning or no
figure is a failure; anew, so is another number of figures than the committed file has.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

FOLDER = Path(__file__).parents[1] / "notebooks"


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Of all code cells."""
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


def figures(notebook: nbformat.NotebookNode) -> int:
    """How many pictures a notebook shows."""
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def warnings(notebook: nbformat.NotebookNode) -> str:
    """What its cells wrote to stderr."""
    return "".join(output["text"] for output in outputs(notebook) if output.get("name") == "stderr")


def executed(path: Path, out: Path, *, recompute: bool) -> nbformat.NotebookNode:
    """A notebook, run in its own folder."""
    given = {"recompute": True} if recompute else {}
    papermill.execute_notebook(path, out, given, cwd=path.parent, progress_bar=False)
    return nbformat.read(out, as_version=4)


def bare(notebook: nbformat.NotebookNode, source: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The executed notebook as it is committed: without papermill's notes and cells' times."""
    for cell, original in zip(notebook.cells, source.cells, strict=True):
        cell.metadata, cell.id = original.metadata, original.id
    notebook.metadata = source.metadata
    return notebook


def run(path: Path, *, refresh: bool) -> list[str]:
    """Run one notebook; what is wrong with it comes back."""
    started, source = time.perf_counter(), nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        try:
            notebook = executed(path, Path(folder) / path.name, recompute=not refresh)
        except PapermillExecutionError as error:
            sys.stdout.write(f"{path.name}: {error}\n")
            return [str(error)]
    wrong = [f"warning: {line}" for line in warnings(notebook).splitlines() if line.strip()]
    if figures(notebook) != figures(source) and not refresh:
        wrong.append(f"{figures(source)} figures expected")
    if not figures(notebook):
        wrong.append("no figure")
    if refresh and not wrong:
        nbformat.write(bare(notebook, source), path)
    heading = f"{path.name}: {time.perf_counter() - started:.0f} s, {figures(notebook)} figures"
    sys.stdout.write("\n  ".join([heading, *wrong]) + "\n")
    sys.stdout.flush()
    return wrong


def main() -> None:
    """Run the notebooks that were named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help="beginnings of names, such as 01; all when none is given"
    )
    parser.add_argument(
        "--refresh", action="store_true", help="rewrite the committed notebooks from results/"
    )
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a hub
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "99"
    )  # torch's profiler says on stderr that it starts and stops
    paths = [
        path
        for path in sorted(FOLDER.glob("*.ipynb"))
        if path.name.startswith(tuple(asked.names or [""]))
    ]
    if not paths:
        sys.exit(f"no notebook is called {', '.join(asked.names)}")
    cores = len(os.sched_getaffinity(0))
    workers = min(cores, len(paths))
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(cores // workers)
    )  # times that are shown come from results/ alone
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        wrong = pool.map(partial(run, refresh=asked.refresh), paths)
        failed = [path.name for path, found in zip(paths, wrong, strict=True) if found]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
