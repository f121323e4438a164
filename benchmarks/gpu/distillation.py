"""Memory and time of a training step, LoRA against full: `python -m benchmarks.gpu.distillation`.

A denoiser with random weights in float32, its layers under bfloat16 autocast, learns the guided
prediction. Each way runs in a process of its own, so that neither finds the other's memory.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from sdbench.distill.ledger import denoiser_of
from sdbench.distill.ledger_methods import METHODS, Setup
from sdbench.distill.ledger_trace import target_of, training_step
from sdbench.instruments.denoiser_arguments import arguments
from sdbench.variants.rows import map_tensors

WAYS = ("distillation, LoRA", "distillation, full")
WARM_UP = 2  # the first makes the optimiser's state


class Held:
    """Bytes that torch holds on a GPU; none are known elsewhere."""

    def __init__(self, device: torch.device) -> None:
        """Start at nothing."""
        self._on_cuda = device.type == "cuda"
        self._device = device
        self._last = 0
        self.parts: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """What came since the last mark is a part's."""
        now = torch.cuda.memory_allocated(self._device) if self._on_cuda else 0
        self.parts[f"{part}_bytes"] = float(now - self._last) if self._on_cuda else float("nan")
        self._last = now

    @property
    def peak_bytes(self) -> float:
        """The most that was held."""
        return (
            float(torch.cuda.max_memory_allocated(self._device)) if self._on_cuda else float("nan")
        )


def measured(way: str, model: str, height: int, steps: int, device: torch.device) -> dict[str, Any]:
    """Bytes by part, and the median seconds of a step, of one way to train."""
    make, size = denoiser_of(model)
    method = METHODS[way]
    held = Held(device)
    denoiser = make().eval().to(device)
    held.mark("weights")

    call = arguments(denoiser, rows=2, height=height, width=height, dtype=torch.float32, **size)
    call = map_tensors(call, lambda tensor: tensor.to(device))
    setup = Setup(lambda: denoiser, lambda _: call, 4, ("attention",), checkpoint_gradients=False)
    setup.add_student(denoiser, method)
    teacher = setup.teacher_of(denoiser, method)
    held.mark("student")

    make_target = partial(target_of, method, teacher, denoiser)
    learnt = [weight for weight in denoiser.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=1e-5, fused=True)
    taken = []
    for number in range(WARM_UP + steps):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            is_first = number == 0
            training_step(denoiser, make_target, call, optimiser, held.mark if is_first else _no)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    step_s = pd.Series(taken[WARM_UP:]).median()
    return {
        "way": way,
        "height": height,
        **held.parts,
        "peak_bytes": held.peak_bytes,
        "step_s": step_s,
    }


def _no(label: str) -> None:
    """No mark."""


def main(
    out: Annotated[Path, typer.Option(help="gets distillation.csv")],
    model: Annotated[str, typer.Option(help="an architecture, or mini-sd")] = "sd15",
    height: Annotated[int, typer.Option(help="pixels, and as many across")] = 512,
    steps: Annotated[int, typer.Option(help="that are timed")] = 20,
    device: Annotated[str, typer.Option(help="cuda or cpu")] = "cuda",
    way: Annotated[str | None, typer.Option(help="one way alone, in this process")] = None,
) -> None:
    """Measure both ways, one after the other."""
    table = out / "distillation.csv"
    if way is None:
        table.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.gpu.distillation", *sys.argv[1:]]
        for each in WAYS:
            subprocess.run([*command, "--way", each], check=True)
        typer.echo(table.read_text())
        return
    row = pd.DataFrame([measured(way, model, height, steps, torch.device(device))])
    out.mkdir(parents=True, exist_ok=True)
    row.to_csv(table, mode="a", header=not table.exists(), index=False)


if __name__ == "__main__":
    typer.run(main)
