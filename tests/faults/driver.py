"""Kills a writer at random moments, lets it go on, and compares what it wrote with a whole run.

    python -m tests.faults.driver FAMILY KILLS SEED FOLDER

Every writer is a fork of this process, which has imported the libraries once and runs nothing
itself. The first thing that does not hold ends it with an AssertionError; seed and moments are
printed before.
"""

import hashlib
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from sdbench.records import results, schema
from sdbench.records.schema import KEYS, STUDY, SWEEP, TRAINING
from sdbench.records.store import StudyFolder, read

Tables = dict[str, pd.DataFrame]
FILLERS = {"string": "text", "Int64": 1, "float64": 0.5, "boolean": True}
MEASURED = ("_s", "_bytes", "foreign_load", "foreign_processes", "throttled", "disturbed")
MEASURED += ("beside",)  # a round that goes on has another call of the baseline
LEARNT = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Family:
    """A kind of writer.

    Args:
        tables: that it writes.
        write: starts in a folder or goes on there, until all is finished.
        measured: whether a column's values differ from run to run.
        last_safe: the last unit that a restart must not repeat; all of them where it says None.
        same_files: asserts that the other files of two finished folders are as they should be.
    """

    tables: tuple[str, ...]
    write: Callable[[Path], object]
    measured: Callable[[str], bool] = lambda column: column.endswith(MEASURED)
    last_safe: Callable[[Path], str | None] = lambda folder: None
    same_files: Callable[[Path, Path], None] = lambda found, expected: None


def rows(table: str, *known: dict[str, object]) -> pd.DataFrame:
    columns = schema.TABLES[table].items()
    filled = {name: (c.choices or (FILLERS[c.dtype],))[0] for name, c in columns if not c.nullable}
    return schema.frame(table, [filled | row for row in known])


def of_store() -> Family:
    """Nothing but the store: a unit takes milliseconds, so most kills hit a write."""

    def write(folder: Path) -> None:
        with StudyFolder.create(
            folder, {"name": "store"}, environment={"cores": 1}, mode="resume"
        ) as opened:
            finished = opened.finished()
            for number in range(12):
                unit = f"unit-{number:02d}"
                if unit not in finished:
                    run = rows("runs", {"unit": unit, "latency_s": time.perf_counter()})
                    steps = rows("steps", *({"unit": unit, "step": step} for step in range(3)))
                    opened.add(unit, runs=run, steps=steps, images=rows("images", {"unit": unit}))
                if number % 4 == 3:
                    opened.compact()
            opened.rewrite("images", read(folder).images.assign(lpips=0.25))

    return Family(STUDY, write)


def of_runner() -> Family:
    from sdbench.study import runner
    from sdbench.study.study import Study
    from tests import tiny

    pipe, variants = tiny.stable_diffusion(), ["cfg", "last:50%", "unguided"]
    fields = {
        "prompts": tiny.PROMPTS,
        "seeds": [0],
        "num_steps": 2,
        "guidance_scale": 7.5,
        "metrics": ["psnr"],
    }
    study = Study(model="tiny", variants=variants, repeats=3, **fields)

    def same_files(found: Path, expected: Path) -> None:
        for _, image in read(found).images.iterrows():
            pixels = np.asarray(Image.open(found / image["path"])).tobytes()
            assert hashlib.sha256(pixels).hexdigest() == image["sha256"], image["path"]

    return Family(
        STUDY,
        lambda folder: runner.run(study, folder, pipe=pipe, mode="resume"),
        same_files=same_files,
    )


def of_sensitivity() -> Family:
    from sdbench.experiments.branch_choice import BranchChoice
    from sdbench.experiments.sensitivity import sweep
    from sdbench.study.generation import Generation
    from tests import tiny

    pipe, choice = tiny.stable_diffusion(), BranchChoice("single", max_rows=2, growth=True)
    fields = {"prompts": tiny.PROMPTS, "seeds": [0, 1], "num_steps": 6, "guidance_scale": 7.5}
    generation = Generation(model="tiny", batch=2, **fields)
    how = {"metrics": ["psnr"], "mode": "resume"}
    return Family(SWEEP, lambda folder: sweep(pipe, generation, choice, folder, **how))


def of_distillation() -> Family:
    import torch
    from safetensors.torch import load_file

    from sdbench.distill import held_out, trainer
    from sdbench.distill.checkpoint import CHECKPOINT
    from sdbench.distill.settings import Settings
    from tests import tiny

    # Without LPIPS's network, and so at any size.
    trainer.provenance = lambda metrics: {}
    trainer.require_size = lambda *size: None
    held_out.score = lambda name, images, reference: (
        (images - reference).abs().flatten(1).mean(dim=1)
    )
    pipe, steps = (
        tiny.stable_diffusion(),
        {"steps": 8, "evaluate_every": 2, "save_every": 2, "num_steps": 2},
    )
    small = {
        "rows": 2,
        "rank": 2,
        "alpha": 2,
        "warmup": 1,
        "learning_rate": 1e-2,
        "targets": ("attention",),
    }
    settings = Settings(guidance_scale=7.5, **steps, **small)
    known = {
        "model": "tiny",
        "captions": tiny.PROMPTS,
        "held_out": ["a small red star on a white background"],
    }

    def last_safe(folder: Path) -> str:
        checkpoint = folder / CHECKPOINT
        return (
            f"{torch.load(checkpoint, weights_only=True)['done']:08d}"
            if checkpoint.exists()
            else ""
        )

    def same_files(found: Path, expected: Path) -> None:
        learnt, wanted = (load_file(folder / "student" / LEARNT) for folder in (found, expected))
        assert learnt.keys() == wanted.keys()
        assert all(torch.equal(weight, wanted[name]) for name, weight in learnt.items())

    return Family(
        TRAINING,
        lambda folder: trainer.distill(pipe, settings, folder, mode="resume", **known),
        measured=lambda column: column == "seconds",
        last_safe=last_safe,
        same_files=same_files,
    )


FAMILIES = {
    "store": of_store,
    "runner": of_runner,
    "sensitivity": of_sensitivity,
    "distillation": of_distillation,
}


def forked(family: Family, folder: Path, seconds: float | None = None) -> bool:
    """Let a fork write, and kill it after a while; whether it had finished."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            written(family, folder)
            code = 0
        except BaseException:  # noqa: BLE001 - the child must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(code)
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        over, status = os.waitpid(child, os.WNOHANG)
        if over:
            assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), (
                "the writer failed; see stderr"
            )
            return os.waitstatus_to_exitcode(status) == 0
        if end is not None and time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            end = None
        time.sleep(5e-4)


def log_of(folder: Path) -> Path:
    return folder.with_suffix(".log")


def written(family: Family, folder: Path) -> None:
    """Write, and log every unit after it was recorded: what is in the log may never be lost."""
    add = StudyFolder.add

    def added(opened: StudyFolder, unit: str, **frames: pd.DataFrame) -> None:
        add(opened, unit, **frames)
        with log_of(folder).open("a") as log:
            log.write(f"{unit}\n")

    StudyFolder.add = added
    family.write(folder)


def found_after(family: Family, folder: Path, before: Tables) -> Tables:
    """The tables after a kill: all that the log names, and what was there before, unchanged."""
    logged = log_of(folder).read_text().split() if log_of(folder).exists() else []
    tables = contents(family, folder) if logged or started(folder) else {}
    if not tables:
        return {}
    units = tables[family.tables[0]]["unit"]
    assert set(logged) <= set(units), f"lost: {set(logged) - set(units)}"
    for name, kept in before.items():
        again = tables[name][tables[name]["unit"].isin(kept["unit"])]
        pd.testing.assert_frame_equal(
            *(in_order(name, frame) for frame in (again, kept)), check_exact=True
        )
    safe = family.last_safe(folder)
    if safe is None:
        assert len(set(logged)) == len(logged), f"repeated: {sorted(logged)}"
        return tables
    return {name: frame[frame["unit"] <= safe] for name, frame in tables.items()}


def started(folder: Path) -> bool:
    """Whether there is a study; reading says if there is none, or one that was just started."""
    try:
        read(folder)
    except ValueError as error:
        return not re.search("no such folder|study.json is missing|holds no study yet", str(error))
    return True


def contents(family: Family, folder: Path) -> Tables:
    found = results.contents(folder, family.tables)
    return {name: found[name] for name in family.tables}


def in_order(table: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Its rows in the order of their key, without what is judged after the last unit."""
    judged = {"images": {"reference_variant", *schema.METRICS}, "runs": {"disturbed"}}
    columns = [name for name in frame if name in judged.get(table, ())]
    return frame.drop(columns=columns).sort_values(KEYS[table], ignore_index=True)


def finished_like(family: Family, found: Path, expected: Path) -> None:
    """A finished folder holds what a whole run left, but for measured times, and nothing else."""
    assert {file.name for file in found.glob(".sdbench-*")} == {".sdbench-lock"}
    assert not (found / "parts").exists()
    wanted = contents(family, expected)
    for name, frame in contents(family, found).items():
        if "phase" in frame:
            frame = frame[frame["phase"] != "companion"]
        varying = [column for column in frame if family.measured(column)]
        varying += (
            ["unit"] if family.tables == SWEEP else []
        )  # names the masks of its call, which a restart may regroup
        key = [column for column in KEYS[name] if column not in varying]
        pair = (
            one.drop(columns=varying).sort_values(key, ignore_index=True)
            for one in (frame, wanted[name])
        )
        pd.testing.assert_frame_equal(*pair, rtol=1e-3)
    family.same_files(found, expected)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def torment(family: Family, kills: int, seed: int, folder: Path) -> None:
    """Kill writers often enough; each folder is finished before the next is begun."""
    moments, started = random.Random(seed), time.monotonic()
    assert forked(family, folder / "whole")
    whole_s, left, number = time.monotonic() - started, kills, 0
    say(f"seed {seed}; a whole run takes {whole_s:.2f} s")
    while left:
        number += 1
        place, before = folder / f"{number}", {}
        while left and not forked(family, place, moments.uniform(0, whole_s)):
            left -= 1
            before = found_after(family, place, before)
            say(
                f"killed {kills - left} of {kills}, in folder {number}: "
                f"kept {sum(map(len, before.values()))} rows"
            )
        assert forked(family, place)
        found_after(family, place, before)
        finished_like(family, place, folder / "whole")


if __name__ == "__main__":
    name, kills, seed, place = sys.argv[1:]
    torment(FAMILIES[name](), int(kills), int(seed), Path(place))
