"""How fast mini-sd's denoiser learns, compiled and not: `python -m benchmarks.training_speed`.

Two copies of one denoiser take the same steps of training, some at a time in turn, so that what
else the machine does slows both alike. The first version of the training ran as `eager` does.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn
from torch.profiler import ProfilerActivity, profile

import sdbench
from sdbench.analysis.stats import ratio_interval
from sdbench.models.mini_sd import networks, scenes, stages
from sdbench.models.mini_sd.settings import Settings

CPU = torch.device("cpu")
KINDS = {"eager": False, "compiled": True}


class Learner:
    """A denoiser that is trained as `fit` does it, without an average and without checkpoints."""

    def __init__(self, settings: Settings, pool: int) -> None:
        """Draw the scenes and the network; both are the same for the same seed."""
        rng = np.random.default_rng(settings.seed)
        attributes = scenes.sample(pool, rng, split="train")
        pipe = sdbench.load("mini-sd", device="cpu")
        latents, _ = stages.encode(pipe.vae, scenes.draw(attributes, rng), CPU)

        torch.manual_seed(settings.seed)
        self.unet = networks.denoiser().to(memory_format=torch.channels_last)
        self._optimiser = torch.optim.AdamW(self.unet.parameters(), lr=1e-3, fused=True)
        self._loss_at = stages.denoiser_loss(
            settings, self.unet, pipe.tokenizer, pipe.text_encoder, attributes, latents, CPU
        )

    def step(self, number: int) -> float:
        """Take a step; its loss."""
        loss = self._loss_at(number)
        loss.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())


def main(
    rounds: Annotated[int, typer.Option(help="turns of each")] = 20,
    steps: Annotated[int, typer.Option(help="of a turn")] = 4,
    pool: Annotated[int, typer.Option(help="scenes")] = 500,
    profiled: Annotated[bool, typer.Option("--profile", help="print what a step does")] = False,
) -> None:
    """Print images per second of both, their ratio with its interval, and how far losses differ."""
    settings = Settings()
    learners = {
        name: Learner(replace(settings, compiled=compiled), pool)
        for name, compiled in KINDS.items()
    }
    losses: dict[str, list[float]] = {name: [] for name in KINDS}
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    for turn in range(rounds + 1):
        for name in sorted(KINDS, reverse=bool(turn % 2)):
            started = time.perf_counter()
            losses[name] += [learners[name].step(turn * steps + at) for at in range(steps)]
            seconds[name].append(time.perf_counter() - started)

    # The first turn compiles.
    images = steps * settings.denoiser_batch
    timed = {name: np.array(taken[1:]) for name, taken in seconds.items()}
    for name, taken in timed.items():
        typer.echo(f"{name}: {images / np.median(taken):.1f} images/s")
    ratio, low, high = ratio_interval(timed["eager"], timed["compiled"])
    typer.echo(f"compiled over eager: {ratio:.2f} [{low:.2f}, {high:.2f}] over {rounds} turns")

    eager, compiled = (np.array(losses[name]) for name in KINDS)
    apart = np.abs(compiled / eager - 1)
    typer.echo(
        f"losses of {len(eager)} steps: {eager[-10:].mean():.4f} and {compiled[-10:].mean():.4f} "
        f"over the last ten; a step apart by {np.median(apart):.1%}, at most {apart.max():.1%}"
    )
    if profiled:
        for name, learner in learners.items():
            typer.echo(f"\n{name}\n{_profile(learner, (rounds + 1) * steps)}")


def _profile(learner: Learner, number: int) -> str:
    """The operations of a step that take longest."""
    with profile(activities=[ProfilerActivity.CPU]) as taken:
        learner.step(number)
    table: str = taken.key_averages().table("self_cpu_time_total", row_limit=12)
    return table


if __name__ == "__main__":
    typer.run(main)
