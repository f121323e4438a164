"""Measure emoji-sd and write its model card (`python -m benchmarks.emoji_card`).

The card holds only what was measured or recorded: alignment over guidance scales on captions that
were held out and on captions that were not, reader and autoencoder on held-out drawings, and the
training record that `sdbench/models/emoji_sd/train.py` wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import StableDiffusionPipeline
from jaxtyping import Float, Int
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.card import SCALES, STEPS, curve_rows, generate, grid
from sdbench.models.emoji_sd import catalogue, icons, networks, reader
from sdbench.models.pipeline import Pipeline

GUIDED = 5.0  # the default scale
AIMS = {"style": 0.95, "category": 0.8}
"""At least so much at the default scale."""
GAP = 0.2  # of alignment, by which the best scale is above w = 1
SHOWN = 6  # captions of each kind in the grid
TEMPLATE = Path(__file__).with_name("emoji_card.md")


def measure(weights: Path, icon_folder: Path, count: int) -> tuple[dict[str, Any], Image.Image]:
    """All figures of the card, and the grid of pictures that it shows."""
    pipe = StableDiffusionPipeline.from_pretrained(weights / "pipeline", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    network = reader.Reader().eval()
    trained = load_file(weights / "reader.safetensors")
    network.load_state_dict({name: weight.float() for name, weight in trained.items()})

    # The same noise at every scale, and as many captions that training has seen.
    wanted = catalogue.held_out(seed=4)[:count]
    seen = seen_pictures(count)
    new_images = {scale: _generated(pipe, wanted, scale) for scale in SCALES}
    old_images = {scale: _generated(pipe, seen, scale) for scale in SCALES}

    # Drawings, of all that are held out.
    rows = catalogue.pictures()
    hidden = ~catalogue.split(rows)
    drawn = torch.from_numpy(icons.draw(icon_folder)[hidden]).permute(0, 3, 1, 2).float() / 255

    shown = [*wanted[:SHOWN], *seen[:SHOWN]]
    figures = {
        "weights": weights.as_posix(),
        "captions": count,
        "steps": STEPS,
        "names": len(catalogue.names()),
        "example": catalogue.captions(wanted[catalogue.held_out_tone(wanted)][:1])[0],
        "held_out_names": int(catalogue.held_out_name(wanted).sum()),
        "held_out_tones": int(catalogue.held_out_tone(wanted).sum()),
        "held_out_pictures": int(hidden.sum()),
        "held_out": {scale: scored(wanted, made, network) for scale, made in new_images.items()},
        "seen": {scale: scored(seen, made, network) for scale, made in old_images.items()},
        "drawn": {"held out": scored(rows[hidden], drawn, network)},
        "autoencoder_psnr_db": reconstruction_psnr(pipe.vae, drawn),
        "parameters": {
            name: sum(p.numel() for p in getattr(pipe, name).parameters())
            for name in ("unet", "vae", "text_encoder")
        },
        "grid_captions": catalogue.captions(np.array(shown)),
    }
    halves = [[images[scale][:SHOWN] for scale in SCALES] for images in (new_images, old_images)]
    return figures, grid([torch.cat(pair) for pair in zip(*halves, strict=True)])


def seen_pictures(count: int) -> Int[np.ndarray, "count 4"]:
    """Pictures of the training split, always the same, in the shares that training has of them."""
    rows = catalogue.pictures()
    rows = rows[catalogue.split(rows)]
    rng = np.random.default_rng(5)
    return rows[rng.choice(len(rows), size=count, replace=False, p=catalogue.weights(rows))]


def _generated(
    pipe: Pipeline, rows: Int[np.ndarray, "n 4"], guidance_scale: float
) -> Float[Tensor, "n 3 64 64"]:
    shape = (networks.CHANNELS, networks.LATENT, networks.LATENT)
    return generate(pipe, catalogue.captions(rows), guidance_scale, shape=shape)


def scored(
    wanted: Int[np.ndarray, "n 4"], images: Float[Tensor, "n 3 64 64"], network: reader.Reader
) -> dict[str, float]:
    """Alignment, its standard error, and the share of pictures that show each part."""
    is_shown = reader.shown(wanted, images, network)
    shares = reader.shares(wanted, is_shown)
    error = shares.std(ddof=1) / np.sqrt(len(shares))
    parts = reader.share_by_part(wanted, is_shown)
    return {"alignment": float(shares.mean()), "standard_error": float(error), **parts}


@torch.no_grad()
def reconstruction_psnr(vae: Any, images: Float[Tensor, "n 3 64 64"]) -> float:
    """Mean PSNR in dB of the autoencoder on drawings."""
    decibels = []
    for some in images.split(100):
        latents = vae.encode(some * 2 - 1).latent_dist.mean
        decoded = vae.decode(latents).sample.add(1).div(2).clamp(0, 1)
        decibels.append(-10 * (decoded - some).square().mean(dim=(1, 2, 3)).log10())
    return float(torch.cat(decibels).mean())


def missed_aims(figures: Mapping[str, Any]) -> list[str]:
    """What the model was to reach on held-out captions and does not, in words."""
    guided = figures["held_out"][str(GUIDED)]
    missed = [
        f"{name} of {aim:g} (it has {guided[name]:.3f})"
        for name, aim in AIMS.items()
        if guided[name] < aim
    ]
    by_scale = {float(scale): found["alignment"] for scale, found in figures["held_out"].items()}
    gap = max(by_scale.values()) - by_scale[1.0]
    return missed + ([f"w = 1 lower by {GAP:g} (it is by {gap:.3f})"] if gap < GAP else [])


def write_card(weights: Path, figures: Mapping[str, Any]) -> None:
    """Write `README.md`, the model card, from the measured figures and the training record."""
    training = json.loads((weights / "training.json").read_text())
    missed = missed_aims(figures)
    shown = enumerate(figures["grid_captions"], start=1)
    texts = {
        "state": f"**Below its aims: {'; '.join(missed)}.**\n\n" if missed else "",
        "scores": _rows(figures["held_out"]),
        "seen_scores": _rows(figures["seen"]),
        "drawn_scores": _rows(figures["drawn"]),
        "curves": curve_rows(training),
        "captions_shown": "\n".join(f"{number}. {caption}" for number, caption in shown),
        "counts": ", ".join(f"{name} {count:,}" for name, count in figures["parameters"].items()),
        "versions": ", ".join(f"{name} {text}" for name, text in training["versions"].items()),
        "hardware": training["hardware"],
    }
    # Where names meet, the texts for the card come before raw figures.
    card = TEMPLATE.read_text().format(**{**training["settings"], **figures, **texts})
    (weights / "README.md").write_text(card)


def _rows(by_name: Mapping[str, Mapping[str, float]]) -> str:
    """Rows of one of the card's tables, by guidance scale or by kind of drawing."""
    rows: Sequence[str] = [
        f"| {name} | {found['alignment']:.3f} ± {1.96 * found['standard_error']:.3f} | "
        + " | ".join(f"{found[part]:.3f}" for part in reader.PARTS)
        + " |"
        for name, found in by_name.items()
    ]
    return "\n".join(rows)


def main(
    weights: Annotated[Path, typer.Argument(help="the folder that `train --export` wrote")],
    icon_folder: Annotated[Path, typer.Option("--icons", help="folder of the unpacked packages")],
    captions: Annotated[
        int, typer.Option(help="captions of each kind per guidance scale, at least 6")
    ] = 256,
) -> None:
    """Measure the exported model and write its card, its figures and its grid."""
    figures, image = measure(weights, icon_folder, captions)
    # As they are read back: scales become texts.
    figures = json.loads(json.dumps(figures))
    (weights / "measured.json").write_text(json.dumps(figures, indent=1) + "\n")

    size = (image.width * 2, image.height * 2)
    image.resize(size, Image.Resampling.NEAREST).save(weights / "grid.png")
    write_card(weights, figures)
    typer.echo(json.dumps(figures["held_out"]))


if __name__ == "__main__":
    typer.run(main)
