"""`distill`: train a student of a guided pipeline; resumed to the same weights.

Device, precision, accumulation and processes are accelerate's. What is learnt from is in
`examples.py`, what learns in `student.py`, the loss in `loss.py`, the loop in `optimisation.py`. A
run's folder holds its curve (the table `training`), its last checkpoint, and in `student/` the
finished weights with their card.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from sdbench.distill.captions import Captioned, Captions, drawn_from
from sdbench.distill.checkpoint import CHECKPOINT
from sdbench.distill.examples import Source
from sdbench.distill.held_out import Evaluation, trajectories
from sdbench.distill.noised_images import Images
from sdbench.distill.optimisation import Optimisation
from sdbench.distill.settings import Settings
from sdbench.distill.start import start_record, starting_file
from sdbench.distill.student import Student
from sdbench.distill.temporary_student import temporary_student
from sdbench.instruments.quality import provenance, require_size
from sdbench.models.identity import identity
from sdbench.models.pipeline import Pipeline, denoiser_of
from sdbench.models.random_weights import has_random_weights
from sdbench.models.registry import own_side
from sdbench.models.settings import settings_of
from sdbench.models.students import CARD_FILE, base_record
from sdbench.records.environment import environment
from sdbench.records.files import read_table, write_json
from sdbench.records.schema import TRAINING
from sdbench.records.store import Mode, StudyFolder

STUDENT = "student"  # the folder of the finished weights, in that of the run


def distill(
    pipe: Pipeline,
    settings: Settings,
    out: str | Path,
    *,
    model: str,
    captions: Captions | Sequence[str] | None = None,
    captioned: Captioned | None = None,
    held_out: Sequence[str],
    start: str | Path | None = None,
    mode: Mode = "new",
) -> Path:
    """Train a student and write it with its card; the pipeline is as before afterwards.

    Args:
        pipe: the teacher, a guided pipeline.
        settings: of the run.
        out: the run's folder.
        model: what the card calls the teacher.
        captions: prompts to learn from, or what draws them; for `data="trajectories"`.
        captioned: draws prompts with images; for `data="images"`.
        held_out: prompts that are never learnt from; the student is judged on them.
        start: the student that the stage "steps" starts from: its folder, or `lora` for the model's
            own.
        mode: "new", "resume" (from the last checkpoint) or "overwrite", for a folder that holds a
            run already.

    Returns:
        The student's folder, which the variant `lora:PATH` takes.

    Raises:
        ValueError: before the first step, for anything that cannot run; a loss or a gradient that
            is not finite, after which the last checkpoint is still there.
    """
    out = Path(out)
    if not held_out:
        raise ValueError("there are no held-out prompts to judge the student on")
    with_images = _makes_images(pipe)

    file = _starting_file(pipe, settings, start)
    record = _record(pipe, settings, held_out, file, judges=["lpips"] if with_images else [])
    record["model"] = model
    record["learnt_from"] = _named(captioned if settings.learns_from_images else captions)

    # Everything that can be refused is, before anything is written.
    accelerator = _accelerator(pipe, settings)
    record["processes"] = accelerator.num_processes
    source = _source(pipe, settings, captions, captioned, rank=accelerator.process_index)
    env = environment() | settings_of(pipe)
    last = env["memory_format"] == "channels_last"

    with (
        temporary_student(pipe, settings, file) as student,
        _folder(accelerator, out, record, env, mode) as folder,
    ):
        run = Optimisation(accelerator, student, settings, out, channels_last=last)
        evaluation = Evaluation(student, run.teaching, settings, held_out, with_images=with_images)
        run.train(source, evaluation, folder)

        # The first process alone writes; the others wait until the student is there.
        if folder is not None:
            _write_student(student, out, record, str(pipe.device))
        accelerator.wait_for_everyone()
    return out / STUDENT


def _record(
    pipe: Pipeline,
    settings: Settings,
    held_out: Sequence[str],
    file: Path | None,
    *,
    judges: Sequence[str],
) -> dict[str, Any]:
    """What a resumed run must agree with."""
    record: dict[str, Any] = {"settings": settings.record, "held_out": list(held_out)}
    record["quality"] = provenance(judges)
    record["pipeline"] = identity(pipe)
    record["base"] = base_record(denoiser_of(pipe))
    if file is not None:
        record["start"] = start_record(file)
    return record


def _accelerator(pipe: Pipeline, settings: Settings) -> Accelerator:
    """What drives the run, with the pipeline on its device.

    Raises:
        ValueError: a precision that the device lacks or that the base does not train in, or
            another kind of device than the pipeline's.
    """
    on_cpu = pipe.device.type == "cpu"
    denoiser: Any = denoiser_of(pipe)
    settings.check_base(str(denoiser.dtype).removeprefix("torch."), on_cpu=on_cpu)

    # Another run in this process may have had another precision.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulate,
    )
    if accelerator.device.type != pipe.device.type:
        raise ValueError(
            f"the pipeline is on '{pipe.device}', but accelerate is set to '{accelerator.device}'"
        )
    movable: Any = pipe
    movable.to(accelerator.device)
    return accelerator


def _source(
    pipe: Pipeline,
    settings: Settings,
    captions: Captions | Sequence[str] | None,
    captioned: Captioned | None,
    *,
    rank: int,
) -> Source:
    """What this process learns from; the others have other seeds."""
    seed = [settings.seed, 0, rank]
    if settings.learns_from_images:
        if captioned is None:
            raise ValueError(
                "there are no captioned images to learn from; "
                "data 'trajectories' needs prompts alone"
            )
        return Images(pipe, captioned, scales=settings.scales, rows=settings.rows, seed=seed)

    if captions is None:
        raise ValueError("there are no prompts to learn from")
    drawn = captions if callable(captions) else drawn_from(captions)
    return trajectories(pipe, drawn, settings, rows=settings.rows, seed=seed)


def _starting_file(pipe: Pipeline, settings: Settings, start: str | Path | None) -> Path | None:
    """The weights that a second stage starts from; None for a first one."""
    if settings.halves_steps == (start is not None):
        return None if start is None else starting_file(pipe, start, settings)
    if start is None:
        raise ValueError("stage 'steps' needs a student to start from")
    raise ValueError("only the stage 'steps' starts from a student")


def _makes_images(pipe: Pipeline) -> bool:
    """Whether a student is judged by its images, too.

    Raises:
        ValueError: they are too small for LPIPS.
    """
    if has_random_weights(pipe):
        return False
    denoiser: Any = denoiser_of(pipe)
    if isinstance(
        getattr(denoiser.config, "sample_size", None), int
    ):  # else nothing says how large
        require_size(["lpips"], own_side(pipe), own_side(pipe))
    return True


def _named(draw: Captions | Sequence[str] | Captioned | None) -> str:
    """What is learnt from, so that a run is not resumed on something else.

    Of a list it is a digest, of a function its name.
    """
    if callable(draw):
        return str(getattr(draw, "__qualname__", draw))
    return hashlib.sha256(json.dumps(list(draw or ())).encode()).hexdigest()[:16]


@contextmanager
def _folder(
    accelerator: Accelerator, out: Path, record: dict[str, Any], env: dict[str, Any], mode: Mode
) -> Iterator[StudyFolder | None]:
    """The run's folder, which the first process alone writes.

    A new run keeps nothing of an older one.
    """
    with ExitStack() as opened:
        folder = None
        if accelerator.is_main_process:
            folder = opened.enter_context(
                StudyFolder.create(
                    out,
                    record,
                    environment=env,
                    mode=mode,
                    tables=TRAINING,
                    companions=(CHECKPOINT, STUDENT),
                )
            )
        accelerator.wait_for_everyone()
        yield folder


def _write_student(student: Student, out: Path, record: dict[str, Any], device: str) -> None:
    """Write the weights, and the card that says what made them and how good they are."""
    student.save(out / STUDENT)
    last_row = read_table(out, "training").iloc[-1]
    settings = record["settings"]
    libraries = ("torch", "diffusers", "peft", "accelerate")

    card: dict[str, Any] = {"model": record["model"]}
    card["method"] = settings["method"]
    card["w_range"] = settings["w_range"]
    card["guidance_scale"] = settings["guidance_scale"] if settings["w_range"] is None else None
    if "start" in record:
        card |= {"num_steps": settings["num_steps"], "start": record["start"]}
    card |= {name: record[name] for name in ("base", "learnt_from", "processes", "settings")}

    card["steps"] = int(last_row["step"])
    card["seconds"] = float(last_row["seconds"])
    card["held_out_loss"] = float(last_row["held_out_loss"])
    card["lpips"] = None if math.isnan(last_row["lpips"]) else float(last_row["lpips"])
    card["versions"] = {name: version(name) for name in libraries}
    card["hardware"] = f"{platform.machine()}, {torch.get_num_threads()} threads, {device}"
    write_json(out / STUDENT / CARD_FILE, card)
