"""The training of a student: device, precision, accumulation and processes by accelerate; resumed to the same weights.

What is learnt from is in `examples.py`, what learns in `student.py`, the loss in `loss.py`. A run's folder holds its
curve (the table `training`), its last checkpoint, and in `student/` the finished weights with their card.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_cosine_schedule_with_warmup
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from sdbench.distill.captions import Captioned, Captions, drawn_from
from sdbench.distill.examples import Examples, Images, Scales, Source, Teaching, Trajectories
from sdbench.distill.loss import distillation_loss, min_snr_weights
from sdbench.distill.student import Student, full_student, lora_student, require_bare
from sdbench.instruments.quality import provenance, score
from sdbench.models.random_weights import has_random_weights
from sdbench.models.registry import layout
from sdbench.models.students import CARD_FILE, base_record, remove_projection
from sdbench.records.environment import environment
from sdbench.records.files import first_line, read_table, write_json, write_whole
from sdbench.records.schema import TRAINING, frame
from sdbench.records.store import Mode, StudyFolder
from sdbench.variants.guidance import call_replaced, denoiser_of, guidance_arguments, guided_by
from sdbench.variants.rows import first_tensor, map_tensors
from sdbench.variants.schedule import GuidanceSchedule

METHODS = ("lora", "full")
DATA = ("images", "trajectories")
HELD_OUT_BATCHES = 4
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run.

    Args:
        guidance_scale: w of the teacher, above 1; of the images that are judged where the student learns many.
        w_range: learn all scales between these two, told to the student; None for `guidance_scale` alone.
        method: "lora" (low-rank layers on the teacher's own weights) or "full" (a trainable copy of all of them).
        data: "trajectories" (the teacher's own, from prompts) or "images" (captioned ones, through the autoencoder).
        steps: of the optimiser.
        rows: (image, noise level) pairs of a batch, in each process.
        learning_rate: its peak; it rises for `warmup` steps and falls along a cosine.
        warmup: steps.
        rank: of the low-rank layers.
        alpha: their update is scaled by alpha / rank.
        targets: which layers get them: attention, feed-forward, convolutions, timestep (what a told w runs through).
        num_steps: of a trajectory, and of the images that are judged.
        min_snr_gamma: limit of a row's weight; every row counts the same where it is None.
        accumulate: batches whose gradients are summed before a step.
        precision: of the denoiser's layers: "no", "fp16" or "bf16".
        checkpoint_gradients: compute activations anew in the backward pass instead of keeping them.
        seed: of prompts, images, noise, order and the low-rank layers.
        evaluate_every: steps between two rows of the curve.
        save_every: steps between two checkpoints.

    Raises:
        ValueError: on construction, for anything that could not run.
    """

    guidance_scale: float
    w_range: tuple[float, float] | None = None
    method: str = "lora"
    data: str = "trajectories"
    steps: int = 2_000
    rows: int = 8
    learning_rate: float = 1e-4
    warmup: int = 50
    rank: int = 8
    alpha: int = 8
    targets: tuple[str, ...] = ("attention", "feed-forward")
    num_steps: int = 50
    min_snr_gamma: float | None = None
    accumulate: int = 1
    precision: str = "no"
    checkpoint_gradients: bool = False
    seed: int = 0
    evaluate_every: int = 250
    save_every: int = 100

    def __post_init__(self) -> None:
        """Check every field that another part would not."""
        self._check_scales()
        for name, known in (
            ("method", METHODS),
            ("data", DATA),
            ("precision", ("no", "fp16", "bf16")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"unknown {name} '{getattr(self, name)}'; there are: {', '.join(known)}"
                )
        least = dict.fromkeys(
            ("steps", "rows", "rank", "num_steps", "accumulate", "evaluate_every", "save_every"), 1
        )
        for name, least_value in (least | {"warmup": 0, "seed": 0}).items():
            if getattr(self, name) < least_value:
                raise ValueError(
                    f"{name} must be at least {least_value}, not {getattr(self, name)}"
                )
        for name in ("learning_rate", "alpha", "min_snr_gamma"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, not {value}")
        if not self.targets:
            raise ValueError("there are no targets for the low-rank layers")

    def _check_scales(self) -> None:
        if not 1 < self.guidance_scale < math.inf:
            raise ValueError(
                f"a guidance scale of {self.guidance_scale:g} is no guidance to learn: w must be above 1"
            )
        if self.w_range is None:
            return
        lo, hi = self.w_range
        if not 1 <= lo < hi < math.inf:
            raise ValueError(
                f"a range of guidance scales goes up from 1 or more, not from {lo:g} to {hi:g}"
            )
        if not lo <= self.guidance_scale <= hi:
            raise ValueError(
                f"the student is judged at w = {self.guidance_scale:g}, out of its range {lo:g} to {hi:g}"
            )
        if self.method != "lora":
            raise ValueError(
                f"method '{self.method}' learns one guidance scale; a range is for lora"
            )

    @property
    def scales(self) -> Scales:
        """The guidance scales that are learnt."""
        return Scales(*(self.w_range or (self.guidance_scale, self.guidance_scale)))


def distill(
    pipe: Any,
    settings: Settings,
    out: str | Path,
    *,
    model: str,
    captions: Captions | Sequence[str] | None = None,
    captioned: Captioned | None = None,
    held_out: Sequence[str],
    mode: Mode = "new",
) -> Path:
    """Train a student of a guided pipeline, and write it with its card; the pipeline is as before afterwards.

    Args:
        pipe: the teacher.
        settings: of the run.
        out: the run's folder.
        model: what the card calls the teacher.
        captions: prompts to learn from, or what draws them; for `data="trajectories"`.
        captioned: draws prompts with images; for `data="images"`.
        held_out: prompts that are never learnt from; the student is judged on them.
        mode: "new", "resume" (from the last checkpoint) or "overwrite", for a folder that holds a run already.

    Returns:
        The student's folder, which the variant `lora:PATH` takes.

    Raises:
        ValueError: before the first step, for anything that cannot run; a loss or a gradient that is not finite, after
            which the last checkpoint is still there.
    """
    out = Path(out)
    if not held_out:
        raise ValueError("there are no held-out prompts to judge the student on")
    judged = not has_random_weights(pipe)
    record: dict[str, Any] = {"model": model, "settings": json.loads(json.dumps(asdict(settings)))}
    record |= {"held_out": list(held_out), "quality": provenance(["lpips"] if judged else [])}
    learnt_from = _named(captioned if settings.data == "images" else captions)
    record |= {"base": base_record(denoiser_of(pipe)), "learnt_from": learnt_from}
    accelerator = _accelerator(pipe, settings)
    record["processes"] = accelerator.num_processes
    source = _source(pipe, settings, captions, captioned, rank=accelerator.process_index)
    env = environment() | layout(pipe)
    with (
        _student(pipe, settings) as student,
        _folder(accelerator, out, record, env, mode) as folder,
    ):
        run = _Run(
            accelerator,
            student,
            settings,
            out,
            channels_last=env["memory_format"] == "channels_last",
        )
        run.train(
            source, _Judge(student, run.teaching, settings, held_out, with_images=judged), folder
        )
        if folder is not None:
            _write_student(student, out, record, str(pipe.device))
        accelerator.wait_for_everyone()
    return out / "student"


def _accelerator(pipe: Any, settings: Settings) -> Accelerator:
    """What drives the run, with the pipeline on its device.

    Raises:
        ValueError: a precision that the device lacks, or another kind of device than the pipeline's.
    """
    on_cpu = pipe.device.type == "cpu"
    if on_cpu and settings.precision == "fp16":
        raise ValueError("precision 'fp16' does not train on a CPU; 'bf16' does")
    AcceleratorState._reset_state()  # another run in this process may have had another precision
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulate,
    )
    if accelerator.device.type != pipe.device.type:
        raise ValueError(
            f"the pipeline is on '{pipe.device}', but accelerate is set to '{accelerator.device}'"
        )
    pipe.to(accelerator.device)
    return accelerator


def _write_student(student: Student, out: Path, record: dict[str, Any], device: str) -> None:
    last = read_table(out, "training").iloc[-1]
    settings = record["settings"]
    ranged = settings["w_range"] is not None
    card = {"model": record["model"], "method": settings["method"], "w_range": settings["w_range"]}
    card["guidance_scale"] = None if ranged else settings["guidance_scale"]
    card |= {name: record[name] for name in ("base", "learnt_from", "processes", "settings")}
    card |= {"steps": int(last["step"]), "seconds": float(last["seconds"])}
    card |= {"held_out_loss": float(last["held_out_loss"]), "lpips": _or_none(last["lpips"])}
    card |= {
        "versions": {name: version(name) for name in ("torch", "diffusers", "peft", "accelerate")}
    }
    card |= {"hardware": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}"}
    student.save(out / "student")
    write_json(out / "student" / CARD_FILE, card)


@contextmanager
def _student(pipe: Any, settings: Settings) -> Iterator[Student]:
    """The student of a run; afterwards the pipeline's denoiser is as it was, without layers of the student."""
    base: Any = denoiser_of(pipe)
    require_bare(base)
    with ExitStack() as undo:
        undo.enter_context(_as_before(base))
        if settings.method == "lora":
            undo.callback(base.unload_lora)
        with torch.random.fork_rng():
            torch.manual_seed(
                settings.seed
            )  # peft draws the layers' first values from the global generator
            if settings.method == "full":
                student = full_student(pipe)
            else:
                low_rank: dict[str, Any] = {
                    name: getattr(settings, name) for name in ("rank", "alpha", "targets")
                }
                student = lora_student(pipe, **low_rank, w_range=settings.w_range)
        denoiser: Any = student.denoiser
        if student.projection is not None:
            undo.callback(remove_projection, denoiser)
        if settings.checkpoint_gradients:
            denoiser.enable_gradient_checkpointing()
            undo.callback(denoiser.disable_gradient_checkpointing)
        yield student


@contextmanager
def _as_before(base: Any) -> Iterator[None]:
    """Afterwards a module has its own attributes, memory format and learning weights, and torch as many threads.

    accelerate and peft leave attributes; a resumed run takes on the format and threads of its first part.
    """
    known, threads = set(vars(base)), torch.get_num_threads()
    before = {weight: (weight.requires_grad, weight.stride()) for weight in base.parameters()}
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name in set(vars(base)) - known:
            delattr(base, name)
        for weight, (learns, stride) in before.items():
            weight.requires_grad_(learns)
            if weight.stride() != stride:
                weight.data = torch.empty_strided(
                    weight.shape, stride, dtype=weight.dtype, device=weight.device
                ).copy_(weight.data)


class _Run:
    """One optimisation, from its last checkpoint on."""

    def __init__(
        self,
        accelerator: Accelerator,
        student: Student,
        settings: Settings,
        out: Path,
        *,
        channels_last: bool,
    ) -> None:
        self.accelerator, self.student, self.settings, self.path = (
            accelerator,
            student,
            settings,
            out / CHECKPOINT,
        )
        learnt = student.learnt
        optimiser = torch.optim.AdamW(
            learnt.values(), lr=settings.learning_rate, weight_decay=0.0, fused=True
        )
        self.schedule = get_cosine_schedule_with_warmup(optimiser, settings.warmup, settings.steps)
        self.done, self.saved, self.seconds, self.losses = 0, 0, 0.0, []
        self.channels_last = channels_last
        saved = _read_checkpoint(self.path)
        if saved is not None:
            # Sums depend on them to the last bit, and they are chosen anew by measurement in every process.
            torch.set_num_threads(saved["threads"])
            self.channels_last = saved["channels_last"]
            last = torch.channels_last if saved["channels_last"] else torch.contiguous_format
            for weight in {*student.denoiser.parameters(), *student.teacher.parameters()}:
                # Low-rank layers keep theirs, which is that of the optimiser's saved state.
                if weight.ndim == 4 and (settings.method == "full" or not weight.requires_grad):
                    weight.data = weight.data.to(memory_format=last)
        self.model, self.optimiser = accelerator.prepare(student.denoiser, optimiser)
        if saved is not None:
            with torch.no_grad():
                for name, weight in learnt.items():
                    weight.copy_(saved["learnt"][name])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.schedule.load_state_dict(saved["schedule"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(saved["scaler"])
            self.done = self.saved = saved["done"]
            self.seconds, self.losses = saved["seconds"], saved["losses"]

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """The pipeline is the teacher's, its denoiser in the same precision as the student."""

        def lower(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.accelerator.autocast():
                    out = original(*args, **kwargs)
                return map_tensors(out, Tensor.float)

            return call

        with ExitStack() as undo:
            if self.settings.precision != "no":
                undo.enter_context(call_replaced(self.student.teacher, lower))
            undo.enter_context(self.student.teaching())
            yield

    def train(self, source: Source, judge: _Judge, folder: StudyFolder | None) -> None:
        """Take all the steps that are left, and put down the curve and the checkpoints."""
        settings, before, started = self.settings, self.seconds, time.perf_counter()
        with _progress(disable=not self.accelerator.is_main_process) as progress:
            task = progress.add_task(
                "distilling", total=settings.steps, completed=self.done, loss=""
            )
            if self.done == 0:
                self._put_down(judge, folder)
            for step in range(self.done, settings.steps):
                self.losses.append(self._step(step, source))
                self.done, self.seconds = step + 1, before + time.perf_counter() - started
                progress.update(
                    task, completed=self.done, loss=f"loss {np.mean(self.losses[-50:]):.4g}"
                )
                last = self.done == settings.steps
                if last or self.done % settings.evaluate_every == 0:
                    self._put_down(judge, folder)
                if last or self.done % settings.save_every == 0:
                    self._save()

    def _step(self, step: int, source: Source) -> float:
        total, model = 0.0, self.model
        for micro in range(self.settings.accumulate):
            examples = source.at(step * self.settings.accumulate + micro, teaching=self.teaching)
            with self.accelerator.accumulate(model):
                loss = self._loss(model, examples)
                self._require_finite("loss", loss.detach(), step)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(list(self.student.learnt.values()), 1.0)
                    if self.accelerator.scaler is None:  # which would skip such a step itself
                        self._require_finite("gradient's norm", norm, step)
                self.optimiser.step()
                self.optimiser.zero_grad(set_to_none=True)
            total += float(loss.detach()) / self.settings.accumulate
        self.schedule.step()
        return total

    def _require_finite(self, what: str, value: Any, step: int) -> None:
        if not torch.isfinite(value):
            kept = (
                f"the checkpoint of step {self.saved} is kept"
                if self.saved
                else "there is no checkpoint yet"
            )
            raise ValueError(
                f"the {what} is {float(value)} in step {step + 1}; {kept}: try a lower learning rate"
            )

    def _loss(self, model: Any, examples: Examples) -> Tensor:
        args, kwargs = self.student.given(examples)
        prediction = first_tensor(model(*args, **kwargs))
        prediction = prediction.narrow(1, 0, examples.cond.shape[1])  # learned variances follow it
        scheduler, gamma = self.student.pipe.scheduler, self.settings.min_snr_gamma
        weights = None if gamma is None else min_snr_weights(scheduler, examples.sigma, gamma)
        return distillation_loss(prediction, examples.target, weights)

    def _put_down(self, judge: _Judge, folder: StudyFolder | None) -> None:
        """A row of the curve; the losses since the last one are averaged."""
        if folder is not None:
            found = judge.row(lambda examples: self._loss(self.student.denoiser, examples))
            row = {"unit": f"{self.done:08d}", "step": self.done, "seconds": self.seconds, **found}
            row["learning_rate"] = self.schedule.get_last_lr()[0]
            row["loss"] = float(np.mean(self.losses)) if self.losses else None
            folder.add(str(row["unit"]), training=frame("training", [row]))
            folder.compact()
        self.losses = []

    def _save(self) -> None:
        """Write the checkpoint whole or not at all; the last one stays until then."""
        self.saved = self.done
        if not self.accelerator.is_main_process:
            return
        state: dict[str, Any] = {
            "learnt": {name: weight.detach() for name, weight in self.student.learnt.items()}
        }
        state |= {"optimiser": self.optimiser.state_dict(), "schedule": self.schedule.state_dict()}
        state |= {"done": self.done, "seconds": self.seconds, "losses": self.losses}
        state |= {"channels_last": self.channels_last, "threads": torch.get_num_threads()}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        write_whole(self.path, lambda file: torch.save(state, file))


class _Judge:
    """Measures a student on held-out prompts: its loss, and how far its images are from the teacher's."""

    def __init__(
        self,
        student: Student,
        teaching: Teaching,
        settings: Settings,
        prompts: Sequence[str],
        *,
        with_images: bool,
    ) -> None:
        self.student, self.teaching, self.settings = student, teaching, settings
        self.prompts, self.with_images = list(prompts), with_images
        self._examples: list[Examples] = []
        self._reference: Tensor | None = None

    def row(self, loss: Callable[[Examples], Tensor]) -> dict[str, float]:
        """The columns of the curve that this measures."""
        if not self._examples:
            self._prepare()
        with torch.no_grad():
            found = {
                "held_out_loss": float(
                    torch.stack([loss(examples) for examples in self._examples]).mean()
                )
            }
        if self._reference is not None:
            with self.student.in_place(self.settings.guidance_scale):
                images = self._images(GuidanceSchedule.none)
            found["lpips"] = float(score("lpips", images, self._reference).mean())
        return found

    def _prepare(self) -> None:
        rows = min(self.settings.rows, len(self.prompts))
        source = Trajectories(
            self.student.pipe,
            lambda rng, count: [
                self.prompts[index] for index in rng.permutation(len(self.prompts))[:count]
            ],
            scales=self.settings.scales,
            num_steps=self.settings.num_steps,
            rows=rows,
            seed=[self.settings.seed, 1, 0],
        )
        self._examples = [
            source.at(step, teaching=self.teaching) for step in range(HELD_OUT_BATCHES)
        ]
        if self.with_images:
            with self.teaching():
                self._reference = self._images(GuidanceSchedule.full)

    def _images(self, rule: Callable[[int], GuidanceSchedule]) -> Tensor:
        pipe, parts = self.student.pipe, []
        for start in range(0, len(self.prompts), self.settings.rows):
            prompts = self.prompts[start : start + self.settings.rows]
            noise = [
                torch.Generator("cpu").manual_seed(start + index) for index in range(len(prompts))
            ]
            guidance = guidance_arguments(pipe, self.settings.guidance_scale, rows=len(prompts))
            asked = {"num_inference_steps": self.settings.num_steps, "output_type": "pt"}
            with torch.no_grad(), guided_by(pipe, rule):
                parts.append(pipe(prompt=prompts, generator=noise, **guidance, **asked).images)
        return torch.cat(parts).float().cpu().clamp(0, 1)


def _source(
    pipe: Any,
    settings: Settings,
    captions: Captions | Sequence[str] | None,
    captioned: Captioned | None,
    *,
    rank: int,
) -> Source:
    shared: dict[str, Any] = {"scales": settings.scales, "rows": settings.rows}
    seed = [settings.seed, 0, rank]
    if settings.data == "images":
        if captioned is None:
            raise ValueError(
                "there are no captioned images to learn from; data 'trajectories' needs prompts alone"
            )
        return Images(pipe, captioned, seed=seed, **shared)
    if captions is None:
        raise ValueError("there are no prompts to learn from")
    draw = captions if callable(captions) else drawn_from(captions)
    return Trajectories(pipe, draw, num_steps=settings.num_steps, seed=seed, **shared)


def _named(draw: Captions | Sequence[str] | Captioned | None) -> str:
    """What is learnt from, so that a run is not resumed on something else: a list's digest or a function's name."""
    if callable(draw):
        return str(getattr(draw, "__qualname__", draw))
    return hashlib.sha256(json.dumps(list(draw or ())).encode()).hexdigest()[:16]


@contextmanager
def _folder(
    accelerator: Accelerator, out: Path, record: dict[str, Any], env: dict[str, Any], mode: Mode
) -> Iterator[StudyFolder | None]:
    """The run's folder, which the first process writes alone; a new run keeps nothing of an older one."""
    with ExitStack() as opened:
        folder = None
        if accelerator.is_main_process:
            options: dict[str, Any] = {
                "mode": mode,
                "tables": TRAINING,
                "beside": (CHECKPOINT, "student"),
            }
            folder = opened.enter_context(
                StudyFolder.create(out, record, environment=env, **options)
            )
        accelerator.wait_for_everyone()
        yield folder


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last checkpoint; None where there is none yet."""
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a file that torch did not write fails in ways that torch does not list
        raise ValueError(
            f"the checkpoint '{path}' cannot be read: {first_line(error)}; --overwrite starts anew"
        ) from None
    return saved


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _progress(*, disable: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(
        *columns, TextColumn("{task.fields[loss]}"), disable=disable, refresh_per_second=2
    )
