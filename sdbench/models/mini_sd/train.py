"""Train mini-sd: `python -m sdbench.models.mini_sd.train --out runs/mini-sd`.

Stages, each resumed from its last checkpoint after a kill: the reader; the autoencoder, and its
decoder further by itself; the text encoder, which learns to name a caption's attributes; the
denoiser. `--stage` trains some of them, and `--from` takes the others over from a model that was
exported before. `--export` writes the pipeline folder and the reader that ship in the wheel. What
the scenes look like is in `scenes.py`, the networks in `networks.py`, what a stage learns from in
`stages.py`; `python -m benchmarks.card` measures the model and writes its card.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from jaxtyping import Int, UInt8

from sdbench.models.mini_sd import networks, scenes, stages
from sdbench.models.mini_sd.export import STAGES, export, take_over
from sdbench.models.mini_sd.settings import Settings
from sdbench.models.training.record import has_bfloat16, record


def run(
    settings: Settings,
    folder: Path,
    device: torch.device,
    names: Collection[str] = STAGES,
    weights: Path | None = None,
) -> Iterator[str]:
    """Train the named stages in `folder`, yielding each name as it is finished.

    What a named stage learns from is trained before it. With `weights`, all stages that are not
    named are taken over from the model that was exported there.

    Raises:
        ValueError: the folder holds a run with other settings, or the stages that are taken over
            had other ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "settings.json"
    if written.exists() and json.loads(written.read_text())["settings"] != asdict(settings):
        raise ValueError(f"{folder} holds a run with other settings")
    written.write_text(json.dumps(record(asdict(settings), device), indent=1))
    if weights is not None:
        take_over(weights, folder, [name for name in STAGES if name not in names])
    attributes, images = _scenes(settings)

    # Every stage has its seed, so that its network does not depend on the stages that ran before.
    if "reader" in names:
        torch.manual_seed(settings.seed)
        stages.train_reader(settings, attributes, images, folder, device)
        yield "reader"

    # The denoiser and the decoder learn on latents.
    if {"autoencoder", "decoder", "denoiser"} & set(names):
        torch.manual_seed(settings.seed + 1)
        vae = stages.train_autoencoder(settings, images, folder, device)
        latents, scaling = stages.encode(vae, images, device)
        (folder / "scaling.json").write_text(json.dumps(scaling))
        yield "autoencoder"

    if "decoder" in names:
        stages.train_decoder(settings, vae, images, latents, scaling, folder, device)
        yield "decoder"

    if {"captions", "denoiser"} & set(names):
        torch.manual_seed(settings.seed + 2)
        tokenizer = networks.write_tokenizer(folder / "tokenizer")
        encoder = stages.train_captions(settings, tokenizer, folder, device)
        yield "captions"

    if "denoiser" in names:
        torch.manual_seed(settings.seed + 3)
        stages.train_denoiser(settings, tokenizer, encoder, attributes, latents, folder, device)
        yield "denoiser"


def _scenes(
    settings: Settings,
) -> tuple[Int[np.ndarray, "n 10"], UInt8[np.ndarray, "n 64 64 3"]]:
    """All scenes that a run sees: attributes and pictures."""
    # 99 is no stage's number, so that no step draws from the same random numbers.
    rng = np.random.default_rng([settings.seed, 99])
    attributes = scenes.sample(settings.pool, rng, split="train")
    return attributes, scenes.draw(attributes, rng)


def main(
    out: Annotated[
        Path, typer.Option(help="folder for checkpoints; an interrupted run resumes from it")
    ],
    export_to: Annotated[
        Path | None, typer.Option("--export", help="write the finished model here")
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help=f"of {', '.join(STAGES)}; all by default")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--from", help="exported model whose other stages are taken over")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cuda"
    if torch.cuda.is_available()
    else "cpu",
) -> None:
    """Train the embedded model from nothing but the scenes that the project draws."""
    settings = Settings(bfloat16=has_bfloat16(device))
    for name in run(settings, out, torch.device(device), stage or STAGES, weights):
        typer.echo(f"{name} finished")
    if export_to is not None:
        export(out, export_to)


if __name__ == "__main__":
    typer.run(main)
