"""Make all the evidence that a GPU can give: `python -m benchmarks.gpu --out results/gpu-NAME`.

It comes in parts of at most eight minutes each, the most valuable first. A part that was ended
leaves its tables, and the same command goes on with it. What ran is in `parts.json`, what was
printed in `printed.txt` of each part, and the tables stand together in `README.md`.

Where nothing can be installed, `--wheels DIR` takes the packages that are missing from a folder of
wheels. This file and `parts.py` need nothing but Python.

    python -m benchmarks.gpu --out results/gpu-h200 --wheels wheels
    python -m benchmarks.gpu --out dry --tiny --device cpu        # a dry run
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import FULL, TINY, Command, Part, parts

ROOT = Path(__file__).parents[2]
GRACE_S = 30  # to write down what is finished


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are not done."""
    asked = _parser().parse_args(arguments)
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as site:
        if asked.wheels is not None:
            _install(asked.wheels, site)
            paths = filter(None, (site, environment.get("PYTHONPATH")))
            environment["PYTHONPATH"] = os.pathsep.join(paths)

        scale = TINY if asked.tiny else FULL
        chosen = [part for part in parts(scale, asked.device) if _is_asked(part, asked.parts)]
        states = [_run(part, asked, environment) for part in chosen]
        subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu.page", str(asked.out)],
            cwd=ROOT,
            env=environment,
            check=True,
        )
    return int("failed" in states)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--parts", help="names with commas; all by default")
    parser.add_argument("--minutes", type=float, default=8.0, help="of each part, at most")
    parser.add_argument("--wheels", type=Path, help="folder with the wheels of missing packages")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a dry run on mini-sd")
    return parser


def _is_asked(part: Part, names: str | None) -> bool:
    return names is None or part.name in names.split(",")


def _install(wheels: Path, site: str) -> None:
    """Put wheels into a folder; nothing is fetched, and nothing installed is changed."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise SystemExit(f"{wheels} holds no wheels")
    how = ("--no-index", "--no-deps", "--no-compile", "--target", site)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *how, *files], check=True)


def _run(part: Part, asked: argparse.Namespace, environment: Mapping[str, str]) -> str:
    """Run what is left of a part, within its minutes; returns how it ended."""
    record = asked.out / "parts.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    own = known.setdefault(part.name, {"question": part.question, "commands": {}})
    ends_at = time.monotonic() + 60 * asked.minutes
    state = "done"
    if part.needs_cuda and asked.device != "cuda":
        state = "needs CUDA"
    else:
        for command in part.commands:
            before = own["commands"].get(command.text, {})
            if before.get("state") == "done":
                continue
            ended = _run_command(command, asked.out / part.name, before, ends_at, environment)
            own["commands"][command.text] = ended
            if ended["state"] != "done":
                state = ended["state"]
            _store(record, known)

    own["state"] = state
    _store(record, known)
    sys.stdout.write(f"{part.name}: {state}\n")
    sys.stdout.flush()
    return state


def _store(record: Path, known: Any) -> None:
    """A kill leaves the last record whole."""
    record.parent.mkdir(parents=True, exist_ok=True)
    unfinished = record.with_suffix(".tmp")
    unfinished.write_text(json.dumps(known, indent=1))
    unfinished.replace(record)


def _run_command(
    command: Command,
    folder: Path,
    before: Mapping[str, Any],
    ends_at: float,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Run a command until it is over or its time is; what it prints goes into a file."""
    left_s = ends_at - time.monotonic()
    if left_s <= 0:
        return {"state": "no time", **before}
    out = folder / command.folder
    words = shlex.split(command.text.format(python=sys.executable, out=out))
    if command.folder and out.exists():
        if command.resumes:
            words += shlex.split(command.resumes)
        else:
            shutil.rmtree(out)

    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (folder / "printed.txt").open("a") as printed:
        printed.write(f"$ {shlex.join(words)}\n")
        printed.flush()
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT
        )
        state = _wait(process, left_s)
    seconds = before.get("seconds", 0.0) + time.monotonic() - started
    return {"state": state, "seconds": round(seconds, 1), "exit_code": process.returncode}


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Until a process is over; one that takes too long may write down what it has."""
    try:
        return "done" if process.wait(seconds) == 0 else "failed"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return "cut off"


if __name__ == "__main__":
    sys.exit(main())
