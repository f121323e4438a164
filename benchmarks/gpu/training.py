"""How fast mini-sd's denoiser learns on a device: `python -m benchmarks.gpu.training`.

The steps are those of the training that ships, compiled and in bfloat16 where the device has it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from torch import nn

import sdbench
from sdbench.models.mini_sd import networks, scenes, stages
from sdbench.models.mini_sd.settings import Settings

TURN = 100  # steps of a row of the table
POOL = 2_000  # scenes


def main(
    out: Annotated[Path, typer.Option(help="gets training.csv")],
    steps: Annotated[int, typer.Option(help="of the optimiser")] = 2_000,
    device: Annotated[str, typer.Option(help="cuda or cpu")] = "cuda",
) -> None:
    """Train from random weights; a row after every hundred steps."""
    where = torch.device(device)
    settings = replace(Settings(), compiled=where.type == "cuda", noisy_from=1.0)
    rng = np.random.default_rng(settings.seed)
    attributes = scenes.sample(POOL, rng, split="train")
    pipe = sdbench.load("mini-sd", device=device)
    latents, _ = stages.encode(pipe.vae, scenes.draw(attributes, rng), where)

    torch.manual_seed(settings.seed)
    unet = networks.denoiser().to(where, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-3, fused=True)
    loss_at = stages.denoiser_loss(
        settings, unet, pipe.tokenizer, pipe.text_encoder, attributes, latents, where
    )
    out.mkdir(parents=True, exist_ok=True)
    for first in range(0, steps, TURN):
        losses = []
        started = time.perf_counter()
        for step in range(first, min(first + TURN, steps)):
            loss = loss_at(step)
            loss.backward()
            nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())  # it waits for the device
        images = len(losses) * settings.denoiser_batch
        row = {"steps": first + len(losses), "loss": mean}
        row["images_per_s"] = images / (time.perf_counter() - started)
        table = out / "training.csv"
        pd.DataFrame([row]).to_csv(table, mode="a", header=not table.exists(), index=False)
        typer.echo(row)


if __name__ == "__main__":
    typer.run(main)
