"""One optimisation that survives a kill: it resumes from its last checkpoint on the same path."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from jaxtyping import Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

WARM_UP = 100  # steps in which the learning rate grows to its peak
CURVE_EVERY = 50  # steps per point of the loss curve, which is their mean


@dataclass(frozen=True)
class Stage:
    """One optimisation.

    Args:
        name: also of its checkpoint.
        steps: its length.
        learning_rate: at its peak.
        ema_decay: of the average of the weights.
    """

    name: str
    steps: int
    learning_rate: float
    ema_decay: float


def fit(
    stage: Stage,
    module: nn.Module,
    loss_at: Callable[[int], Float[Tensor, ""]],
    folder: Path,
    *,
    device: torch.device,
    save_every: int = 250,
) -> nn.Module:
    """Minimise `loss_at(step)` with AdamW under a cosine schedule and return the averaged module.

    The loss must depend on nothing but the weights and the step, so that a run resumed from its
    checkpoint takes the same path as one that was never interrupted.
    """
    module.to(device).to(memory_format=torch.channels_last)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(stage.ema_decay))
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=stage.learning_rate, weight_decay=0.01, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimiser, WARM_UP, stage.steps)

    states = {"module": module, "average": average, "optimiser": optimiser, "schedule": schedule}
    checkpoint = Checkpoint(folder / f"{stage.name}.pt", states)
    done, curve = checkpoint.load(device)

    since: list[Float[Tensor, ""]] = []
    with _progress() as progress:
        task = progress.add_task(stage.name, total=stage.steps, completed=done, loss="")
        for step in range(done, stage.steps):
            # The order of these calls decides the weights bit by bit.
            loss = loss_at(step)
            loss.backward()
            nn.utils.clip_grad_norm_(learnt, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            average.update_parameters(module)

            # Reading the loss waits for the device, so it is read once for many steps.
            since.append(loss.detach())
            progress.advance(task)
            if (step + 1) % CURVE_EVERY == 0:
                curve.append([step + 1, float(torch.stack(since).mean())])
                since.clear()
                progress.update(task, loss=f"loss {curve[-1][1]:.4f}")

            if (step + 1) % save_every == 0 or step + 1 == stage.steps:
                checkpoint.save(step + 1, curve)
    return average.module.eval().requires_grad_(False)


class Checkpoint:
    """The state of an optimisation in a file: its parts, steps done, seconds taken, loss curve."""

    def __init__(self, path: Path, parts: Mapping[str, Any]) -> None:
        """Take the file and the parts that have a state, by name."""
        self._path = path
        self._parts = parts
        self._seconds_before = 0.0
        self._started = time.perf_counter()

    def load(self, device: torch.device) -> tuple[int, list[list[float]]]:
        """Bring the parts to where they were.

        Returns:
            Steps done and the loss curve so far: nothing and nothing where there is no file.
        """
        done = 0
        curve: list[list[float]] = []
        if self._path.exists():
            saved = torch.load(self._path, map_location=device, weights_only=True)
            # A stage that was taken over from an exported model is finished: its average is left.
            names = ("average",) if saved.get("taken_over") else self._parts
            for name in names:
                self._parts[name].load_state_dict(saved[name])
            done = saved["done"]
            curve = saved["curve"]
            self._seconds_before = saved["seconds"]
        self._started = time.perf_counter()
        return done, curve

    def save(self, done: int, curve: list[list[float]]) -> None:
        """Write the file; a kill leaves the last one whole."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        state["done"] = done
        state["seconds"] = self._seconds_before + time.perf_counter() - self._started
        state["curve"] = curve

        # A file is replaced in one go, so there is always a whole one.
        unfinished = self._path.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.replace(self._path)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, TextColumn("{task.fields[loss]}"))
