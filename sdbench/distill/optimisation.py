"""The training loop of a student: its steps, its curve and its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.optimization import get_cosine_schedule_with_warmup
from jaxtyping import Float
from torch import Tensor

from sdbench.distill.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint, write_checkpoint
from sdbench.distill.examples import Examples, Source
from sdbench.distill.held_out import Evaluation
from sdbench.distill.loss import distillation_loss, min_snr_weights
from sdbench.distill.pipeline_call import output_as_given
from sdbench.distill.settings import Settings
from sdbench.distill.student import Student
from sdbench.records.schema import frame
from sdbench.records.store import StudyFolder
from sdbench.study.progress import progress_bar
from sdbench.variants.hooks import call_replaced
from sdbench.variants.rows import first_tensor

GRADIENT_LIMIT = 1.0  # of the gradient's norm, above which it is scaled down
SHOWN_LOSSES = 50  # steps whose mean loss the progress bar shows


class Optimisation:
    """One optimisation, from its last checkpoint on.

    Args:
        accelerator: what drives it.
        student: what is trained.
        settings: of the run.
        out: the run's folder, with the checkpoint.
        channels_last: memory format of the denoiser's kernels; a resumed run takes on that of its
            first part.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        student: Student,
        settings: Settings,
        out: Path,
        *,
        channels_last: bool,
    ) -> None:
        self.accelerator = accelerator
        self.student = student
        self.settings = settings
        self.path = out / CHECKPOINT
        self.channels_last = channels_last

        # What a checkpoint adds to.
        self.done = 0
        self.saved = 0
        self.seconds = 0.0
        self.losses: list[float] = []

        # Fused, because otherwise AdamW takes scratch memory of the size of the weights.
        optimiser = torch.optim.AdamW(
            student.learnt.values(), lr=settings.learning_rate, weight_decay=0.0, fused=True
        )
        self.schedule = get_cosine_schedule_with_warmup(optimiser, settings.warmup, settings.steps)

        checkpoint = read_checkpoint(self.path)
        if checkpoint is not None:
            self._take_on_layout(checkpoint)
        self.model, self.optimiser = accelerator.prepare(student.denoiser, optimiser)
        if checkpoint is not None:
            self._restore(checkpoint)

    def _take_on_layout(self, checkpoint: Checkpoint) -> None:
        """Take on the threads and the memory format of the run's first part.

        Sums depend on them to the last bit, and every process chooses them again by measurement.
        """
        torch.set_num_threads(checkpoint["threads"])
        self.channels_last = checkpoint["channels_last"]
        chosen = torch.channels_last if self.channels_last else torch.contiguous_format

        for weight in {*self.student.denoiser.parameters(), *self.student.teacher.parameters()}:
            # Low-rank layers keep theirs, which is that of the optimiser's saved state.
            if weight.ndim == 4 and (self.student.is_copy or not weight.requires_grad):
                weight.data = weight.data.to(memory_format=chosen)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Go on from where the checkpoint was written."""
        with torch.no_grad():
            for name, weight in self.student.learnt.items():
                weight.copy_(checkpoint["learnt"][name])
        self.optimiser.load_state_dict(checkpoint["optimiser"])
        self.schedule.load_state_dict(checkpoint["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint["scaler"])

        self.done = checkpoint["done"]
        self.saved = checkpoint["done"]
        self.seconds = checkpoint["seconds"]
        self.losses = checkpoint["losses"]

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """The pipeline is the teacher's, its denoiser in the same precision as the student."""

        def lower(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.accelerator.autocast():
                    return original(*args, **kwargs)

            return call

        with ExitStack() as undo:
            if self.settings.is_mixed:
                undo.enter_context(call_replaced(self.student.teacher, lower))
                undo.enter_context(output_as_given(self.student.teacher))
            undo.enter_context(self.student.teaching())
            yield

    def train(self, source: Source, evaluation: Evaluation, folder: StudyFolder | None) -> None:
        """Take all the steps that are left, and write the curve and the checkpoints.

        Args:
            source: gives the batches.
            evaluation: measures the student for the curve.
            folder: gets the curve; None in a process that writes nothing.
        """
        settings = self.settings
        seconds_before = self.seconds
        started = time.perf_counter()

        with progress_bar(disable=not self.accelerator.is_main_process) as progress:
            task = progress.add_task(
                "distilling", total=settings.steps, completed=self.done, what=""
            )
            if self.done == 0:
                self._add_to_curve(evaluation, folder)

            for step in range(self.done, settings.steps):
                self.losses.append(self._step(step, source))
                self.done = step + 1
                self.seconds = seconds_before + time.perf_counter() - started
                shown = f"loss {np.mean(self.losses[-SHOWN_LOSSES:]):.4g}"
                progress.update(task, completed=self.done, what=shown)

                # The last step ends with both, whatever their intervals.
                is_last = self.done == settings.steps
                if is_last or self.done % settings.evaluate_every == 0:
                    self._add_to_curve(evaluation, folder)
                if is_last or self.done % settings.save_every == 0:
                    self._save()

    def _step(self, step: int, source: Source) -> float:
        """Take one step of the optimiser; the mean loss of its batches comes back."""
        total = 0.0
        for micro in range(self.settings.accumulate):
            examples = source.at(step * self.settings.accumulate + micro, teaching=self.teaching)
            with self.accelerator.accumulate(self.model):
                loss = self._loss(self.model, examples)
                self._require_finite("loss", loss.detach(), step)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self._limit_gradient(step)

                # accelerate skips both where gradients are still to be summed.
                self.optimiser.step()
                self.optimiser.zero_grad(set_to_none=True)
            total += float(loss.detach()) / self.settings.accumulate
        self.schedule.step()
        return total

    def _limit_gradient(self, step: int) -> None:
        """Scale a large gradient down, and refuse one that is not finite."""
        weights = list(self.student.learnt.values())
        norm = self.accelerator.clip_grad_norm_(weights, GRADIENT_LIMIT)
        # A scaler skips such a step itself.
        if self.accelerator.scaler is None:
            self._require_finite("gradient's norm", norm, step)

    def _require_finite(self, what: str, value: Float[Tensor, ""], step: int) -> None:
        if torch.isfinite(value):
            return
        kept = "there is no checkpoint yet"
        if self.saved:
            kept = f"the checkpoint of step {self.saved} is kept"
        raise ValueError(
            f"the {what} is {float(value)} in step {step + 1}; {kept}: try a lower learning rate"
        )

    def _loss(self, model: Any, examples: Examples) -> Float[Tensor, ""]:
        args, kwargs = self.student.given(examples)
        prediction = first_tensor(model(*args, **kwargs))
        # Learned variances follow the prediction.
        prediction = prediction.narrow(1, 0, examples.cond.shape[1])

        gamma = self.settings.min_snr_gamma
        weights = None
        if gamma is not None:
            weights = min_snr_weights(self.student.pipe.scheduler, examples.sigma, gamma)
        return distillation_loss(prediction, examples.target, weights)

    def _add_to_curve(self, evaluation: Evaluation, folder: StudyFolder | None) -> None:
        """Write a row of the curve; the losses since the last one are averaged."""
        if folder is not None:
            measured = evaluation.row(lambda examples: self._loss(self.student.denoiser, examples))
            unit = f"{self.done:08d}"
            row = {"unit": unit, "step": self.done, "seconds": self.seconds, **measured}
            row["learning_rate"] = self.schedule.get_last_lr()[0]
            row["loss"] = float(np.mean(self.losses)) if self.losses else None
            folder.add(unit, training=frame("training", [row]))
            folder.compact()
        self.losses = []

    def _save(self) -> None:
        """Write the checkpoint, in the first process alone."""
        self.saved = self.done
        if not self.accelerator.is_main_process:
            return

        learnt = {name: weight.detach() for name, weight in self.student.learnt.items()}
        checkpoint = Checkpoint(
            learnt=learnt,
            optimiser=self.optimiser.state_dict(),
            schedule=self.schedule.state_dict(),
            done=self.done,
            seconds=self.seconds,
            losses=self.losses,
            channels_last=self.channels_last,
            threads=torch.get_num_threads(),
        )
        if self.accelerator.scaler is not None:
            checkpoint["scaler"] = self.accelerator.scaler.state_dict()
        write_checkpoint(self.path, checkpoint)
