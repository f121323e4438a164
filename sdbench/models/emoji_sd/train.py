"""Train emoji-sd: `python -m sdbench.models.emoji_sd.train --icons icons --out runs/emoji-sd`.

Stages, each resumed from its last checkpoint after a kill: the reader; the autoencoder; the text
encoder, which learns to name a caption's parts and to tell what the reader sees; the denoiser.
`--export` writes the pipeline folder and the reader that ship in the wheel. Which pictures there
are is in `catalogue.py`, how they are drawn in `icons.py`, the networks in `networks.py`, what a
stage learns from in `stages.py`; `python -m benchmarks.emoji_card` measures the model and writes
its card.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float, Int, UInt8
from safetensors.numpy import load_file, save_file
from torch import Tensor

from sdbench.models.emoji_sd import catalogue, icons, networks, stages
from sdbench.models.emoji_sd.export import STAGES, export
from sdbench.models.emoji_sd.settings import Settings
from sdbench.models.training.record import has_bfloat16, record


def run(
    settings: Settings,
    icon_folder: Path,
    folder: Path,
    device: torch.device,
    names: Collection[str] = STAGES,
) -> Iterator[str]:
    """Train the named stages in `folder`, yielding each name as it is finished.

    What a named stage learns from is trained before it.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "settings.json"
    if written.exists() and json.loads(written.read_text())["settings"] != asdict(settings):
        raise ValueError(f"{folder} holds a run with other settings")
    written.write_text(json.dumps(record(asdict(settings), device), indent=1))
    rows, images = _pictures(icon_folder, folder)

    # Every stage has its seed, so that its network does not depend on the stages that ran before.
    if {"reader", "captions", "denoiser"} & set(names):
        torch.manual_seed(settings.seed)
        network = stages.train_reader(settings, rows, images, folder, device)
        yield "reader"

    if {"autoencoder", "denoiser"} & set(names):
        torch.manual_seed(settings.seed + 1)
        vae = stages.train_autoencoder(settings, rows, images, folder, device)
        yield "autoencoder"

    if {"captions", "denoiser"} & set(names):
        torch.manual_seed(settings.seed + 2)
        tokenizer = networks.write_tokenizer(folder / "tokenizer")
        seen = stages.features(network, images, device)
        encoder = stages.train_captions(settings, tokenizer, rows, seen, folder, device)
        yield "captions"

    if "denoiser" in names:
        torch.manual_seed(settings.seed + 3)
        latents = _latents(vae, images, folder, device)
        stages.train_denoiser(settings, tokenizer, encoder, rows, latents, folder, device)
        yield "denoiser"


def _pictures(
    icon_folder: Path, folder: Path
) -> tuple[Int[np.ndarray, "n 4"], UInt8[np.ndarray, "n 64 64 3"]]:
    """The pictures of the training split, drawn once: a resumed run reads them from its folder."""
    drawn = folder / "pictures.safetensors"
    if not drawn.exists():
        save_file({"pictures": icons.draw(icon_folder)}, drawn)
    rows = catalogue.pictures()
    seen = catalogue.split(rows)
    return rows[seen], load_file(drawn)["pictures"][seen]


def _latents(
    vae: Any, images: UInt8[np.ndarray, "n 64 64 3"], folder: Path, device: torch.device
) -> Float[Tensor, "n 6 16 16"]:
    """The pictures' latents, of mean 0 in every channel and variance 1 over all.

    What was taken from them is recorded, since the exported autoencoder has to add it again.
    """
    latents = stages.encode(vae, images, device)
    means = latents.mean(dim=(0, 2, 3))
    latents = latents - means[:, None, None]
    scaling = float(1 / latents.std())
    (folder / "scaling.json").write_text(json.dumps({"means": means.tolist(), "scaling": scaling}))
    return latents * scaling


def main(
    icon_folder: Annotated[Path, typer.Option("--icons", help="folder of the unpacked packages")],
    out: Annotated[
        Path, typer.Option(help="folder for checkpoints; an interrupted run resumes from it")
    ],
    export_to: Annotated[
        Path | None, typer.Option("--export", help="write the finished model here")
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help=f"of {', '.join(STAGES)}; all by default")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cuda"
    if torch.cuda.is_available()
    else "cpu",
) -> None:
    """Train the embedded model on the drawings of two icon sets."""
    settings = Settings(bfloat16=has_bfloat16(device))
    for name in run(settings, icon_folder, out, torch.device(device), stage or STAGES):
        typer.echo(f"{name} finished")
    if export_to is not None:
        export(out, export_to)


if __name__ == "__main__":
    typer.run(main)
