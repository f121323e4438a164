"""Probes that listen to the seam: time, sensitivity signal and memory of every denoising step.

A probe observes; nothing here changes what a pipeline computes. The seam itself is in
`variants.seam`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.instruments.clock import Clock, Mark
from sdbench.instruments.memory import AllocatorTrace, CudaTrace
from sdbench.models.pipeline import Scheduler
from sdbench.variants.fitted_scale import is_laid_out_like
from sdbench.variants.noise import clean_latent
from sdbench.variants.trace import Listener, Step, number

GiveWay = Callable[[float], None]
"""Lets other calls go on for a while; gets the share of its steps that a call has taken."""
GUIDANCE_SPACE = "x0"
"""The cosine is taken between the clean latents that both predictions imply."""
# Noise predictions themselves are nearly parallel at high noise.


@dataclass
class CallRecord:
    """One pipeline call: seconds per stage, counts, and a row of the table `steps` for each step.

    `latency_s` is the sum of the three stages; `denoise_s` is the sum of the steps' `latency_s`.
    What the probe itself computes between two steps belongs to none of them.
    """

    latency_s: float = 0.0
    text_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    images: int = 0
    rows: int = 0
    forwards: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _StepMarks:
    """What is noted while a step runs; it becomes a row when the call has ended."""

    start: Mark
    denoiser: list[list[Mark]] = field(default_factory=list)
    scheduler: Mark = None
    end: Mark = None
    row: dict[str, Any] = field(default_factory=dict)
    signal: tuple[Float[Tensor, ""], Float[Tensor, ""]] | None = None


class StepProbe(Listener):
    """Times every step and takes the cosine and the norm that say how much guidance changes it.

    Args:
        scheduler: the pipeline's scheduler, which says what a prediction means.
        clock: host time on the CPU, events on CUDA (`clock_for`).
        give_way: called where the loop begins and after every step, at no time that is measured.
    """

    def __init__(self, scheduler: Scheduler, clock: Clock, give_way: GiveWay | None = None) -> None:
        """Attach nothing yet: pass the probe to `guided_by` as a listener."""
        self._scheduler = scheduler
        self._clock = clock
        self._give_way = give_way
        self._text_ended: Mark = None
        self._marks: list[_StepMarks] = []
        self._images = 0
        self._loops = 0
        self._iterations = 0

    @contextmanager
    def call(self) -> Iterator[CallRecord]:
        """Observe exactly one pipeline call.

        The record is filled when the block ends, and stays empty if it fails.

        Raises:
            RuntimeError: none or several loops ran, or one that ended early.
        """
        record = CallRecord()
        self._marks = []
        self._images = 0
        self._loops = 0

        started = self._clock.mark()
        yield record
        ended = self._clock.mark()

        # Only now may the device be waited for: marks are read when all of them are reached.
        self._clock.finish()
        if self._loops != 1:
            raise RuntimeError(
                f"a record covers one pipeline call, but {self._loops} denoising loops ran"
            )
        steps = len(self._marks) - 1
        if steps != self._iterations:
            raise RuntimeError(f"the loop ended after {steps} of {self._iterations} steps")
        self._fill(record, started, ended)

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """Start the first step."""
        # A pipeline of several stages may run two loops in a call; `call` refuses that.
        self._images = images
        self._iterations = iterations
        self._loops += 1
        self._text_ended = begins = self._clock.mark()
        if self._give_way is not None:
            self._give_way(0.0)
            begins = self._clock.mark()
        self._marks = [_StepMarks(begins)]

    def denoiser_begins(self, step: Step, rows: int) -> None:
        """Mark the start of an evaluation."""
        self._marks[-1].denoiser.append([self._clock.mark()])

    def denoiser_ends(self, step: Step) -> None:
        """Mark its end."""
        self._marks[-1].denoiser[-1].append(self._clock.mark())

    def scheduler_begins(self, step: Step) -> None:
        """Mark the start of the scheduler's part."""
        self._marks[-1].scheduler = self._clock.mark()

    def scheduler_ends(self, step: Step) -> None:
        """Close the step's time."""
        self._marks[-1].end = self._clock.mark()

    def step_ends(self, step: Step) -> None:
        """Take the step's signal outside its time, and start the next one."""
        marks = self._marks[-1]
        marks.row = {
            "step": step.index,
            "guided": step.guided,
            "rows": step.rows,
            "forwards": step.forwards,
        }
        marks.row |= {"timestep": step.timestep, "sigma": step.sigma}
        # An unguided step has one prediction and no signal.
        if step.uncond is not None:
            marks.signal = guidance_signal(self._scheduler, step)
        if self._give_way is not None:
            self._give_way((step.index + 1) / self._iterations)
        self._marks.append(_StepMarks(self._clock.mark()))

    def _fill(self, record: CallRecord, started: Mark, ended: Mark) -> None:
        seconds = self._clock.seconds
        *steps, after = self._marks
        record.images = self._images
        record.text_s = seconds(started, self._text_ended)
        record.decode_s = seconds(after.start, ended)

        for marks in steps:
            row = marks.row
            record.rows += row["rows"]
            record.forwards += row.pop("forwards")
            # Tensors were kept as they are, since reading one waits for the device.
            row["timestep"] = number(row["timestep"])
            row["sigma"] = number(row["sigma"])
            row["latency_s"] = seconds(marks.start, marks.end)
            row["denoiser_s"] = sum(seconds(begin, end) for begin, end in marks.denoiser)
            row["scheduler_s"] = seconds(marks.scheduler, marks.end)

            cosine, norm = marks.signal or (None, None)
            row["guidance_cosine"] = None if cosine is None else float(cosine)
            row["guidance_norm"] = None if norm is None else float(norm)
            record.steps.append(row)

        record.denoise_s = sum(row["latency_s"] for row in record.steps)
        record.latency_s = record.text_s + record.denoise_s + record.decode_s


def guidance_signal(
    scheduler: Scheduler, step: Step
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cosine between the two predictions of the clean latent, and norm of the raw difference.

    Both are means over the images of the batch and stay on the device. The cosine is NaN where the
    scheduler gets latents in another layout than the denoiser gives predictions in.

    Source: the cosine is the signal of adaptive guidance (arXiv 2312.12487), there on the raw
        predictions.
    """
    assert step.cond is not None
    assert step.uncond is not None
    assert step.sigma is not None
    if step.sample is None or not is_laid_out_like(step.sample, step.cond):
        return torch.full_like(step.sigma, torch.nan), _mean_norm(step.cond - step.uncond)

    channels = step.sample.shape[1]  # learned variances follow the prediction
    cond = step.cond[:, :channels].float()
    uncond = step.uncond[:, :channels].float()
    sample = step.sample.float()
    with_guidance = clean_latent(scheduler, cond, sample, step.sigma).flatten(1)
    without = clean_latent(scheduler, uncond, sample, step.sigma).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(with_guidance, without, dim=1).mean()
    return cosine, _mean_norm(cond - uncond)


def _mean_norm(difference: Float[Tensor, "images ..."]) -> Float[Tensor, ""]:
    return torch.linalg.vector_norm(difference.float().flatten(1), dim=1).mean()


class MemoryProbe(Listener):
    """Closes one interval of a memory trace at the end of every step."""

    def __init__(self, trace: AllocatorTrace | CudaTrace) -> None:
        """Feed an entered trace."""
        self._trace = trace

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """Keep what came before the loop out of the first step."""
        self._trace.mark("text")

    def step_ends(self, step: Step) -> None:
        """Close the step's interval."""
        self._trace.mark(str(step.index))
