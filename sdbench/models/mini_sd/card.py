"""Measure mini-sd and write its model card: `python -m sdbench.models.mini_sd.card sdbench/models/mini_sd/weights`.

The card holds only what was measured or recorded: reader and autoencoder on held-out scenes, alignment over guidance
scales on held-out captions, and the training record that `train.py` wrote.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from sdbench.models.mini_sd import reader, scenes

SCALES = (1.0, 2.5, 5.0, 7.5)
STEPS = 50
AIM = 0.90  # alignment at the best guidance scale

CARD = """# mini-sd

A text-to-image model of Stable Diffusion's own classes at toy size, trained by this project on scenes that it draws
itself (`scenes.py`): one or two shapes of 8 colours, 6 forms, 3 textures, 2 sizes and 4 relations on a shaded
background, 64 x 64 pixels. It exists to experiment on: it opens with `StableDiffusionPipeline.from_pretrained`, runs
on a laptop, and every attribute of its images can be read back. It is of no other use.

{state}Parameters: {counts}. Weights are stored in half precision and open in float32. Default guidance scale: 5.0.

## Measured

{captions} captions whose first object (texture, colour and form together) was never drawn in training; {steps}-step
DDIM, the same noise at every scale. Alignment is the share of a caption's attributes that the reader finds in the
image, with 1.96 standard errors.

| guidance scale | alignment | background colour right |
|---|---|---|
{scores}

Reader: mean attribute accuracy {reader_accuracy:.4f} on 4,096 held-out drawn scenes. Autoencoder:
{autoencoder_psnr_db:.1f} dB PSNR on 512 held-out drawn scenes.
Command: `python -m sdbench.models.mini_sd.card sdbench/models/mini_sd/weights --captions {captions}`.

![Six rows of two captions, each at w = 1, 2.5, 5 and 7.5](grid.png)

Each row shows two captions, each at w = 1, 2.5, 5 and 7.5 from left to right:

{captions_shown}

## Training

The text encoder was trained by itself to tell every attribute of a scene from its caption, and frozen, as Stable
Diffusion's is: the denoiser's loss alone had not taught it whose a colour is. Losses are of different kinds and compare
within a row.

Objects stand on every fourth pixel, the grid of the latents, in two radii and with textures fixed to them. A first
design left place, radius and texture phase free; 10,000 steps of the denoiser did not learn its shapes and textures,
which are then another pattern of latents at every offset.

Captions were made wrong on purpose, as captions from the web are: from {noisy_from:.0%} of the denoiser's steps on,
each attribute was replaced at random with probability {caption_noise}. With clean captions guidance hardly mattered;
with noisy ones the unguided model is as unsure as its captions were, and guidance sharpens it. It is judged on clean
captions. {caption_dropout:.0%} of the captions were empty, for the unconditional prediction. Weights are averages over
the last steps (EMA).

| stage | steps | minutes | loss at the start | at 25 % | at 50 % | at 75 % | at the end |
|---|---|---|---|---|---|---|---|
{curves}

The denoiser's loss steps up where the captions become noisy. Hardware: {hardware}, shared with other work, so the
minutes are upper bounds. Versions: {versions}. Seed: {seed}. All settings and the whole loss curves are in
`training.json`. Commands: `python -m sdbench.models.mini_sd.train --out runs/mini-sd --export
sdbench/models/mini_sd/weights`, then the one above. Licence: Apache-2.0, as the project.
"""


def generate(
    pipe: Any, captions: Sequence[str], guidance_scale: float, *, batch: int = 64
) -> Float[Tensor, "n 3 64 64"]:
    """One image per caption with 50 DDIM steps, in [0, 1]; image i has the noise of seed i whatever the scale."""
    parts = []
    for start in track(range(0, len(captions), batch), description=f"w = {guidance_scale:g}"):
        chosen = list(captions[start : start + batch])
        generators = [torch.Generator("cpu").manual_seed(start + i) for i in range(len(chosen))]
        call = {"num_inference_steps": STEPS, "guidance_scale": guidance_scale, "output_type": "pt"}
        parts.append(pipe(chosen, generator=generators, **call).images)
    return torch.cat(parts).clamp(0, 1).float().cpu()


def reader_accuracy(network: reader.Reader, count: int = 4096) -> float:
    """Mean attribute accuracy of the reader on held-out drawn scenes."""
    rng = np.random.default_rng(2)
    rows = scenes.sample(count, rng, split="test")
    seen = [
        reader.read(_pixels(part), network)
        for part in np.array_split(scenes.draw(rows, rng), count // 256)
    ]
    return reader.attribute_accuracy(np.concatenate(seen), rows)


@torch.no_grad()
def reconstruction_psnr(vae: Any, count: int = 512) -> float:
    """Mean PSNR in dB of the autoencoder on held-out drawn scenes."""
    rng = np.random.default_rng(3)
    images = _pixels(scenes.draw(scenes.sample(count, rng, split="test"), rng))
    decoded = (
        vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample.add(1).div(2).clamp(0, 1)
    )
    return float(-10 * (decoded - images).square().mean(dim=(1, 2, 3)).log10().mean())


def measure(weights: Path, count: int) -> tuple[dict[str, Any], Image.Image]:
    """All figures of the card, and a grid of 6 x 8 images: two captions a row, each at the four scales."""
    pipe = StableDiffusionPipeline.from_pretrained(weights / "pipeline", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    network = reader.Reader().eval()
    network.load_state_dict(
        {name: weight.float() for name, weight in load_file(weights / "reader.safetensors").items()}
    )

    wanted = scenes.sample(count, np.random.default_rng(4), split="test")
    captions = scenes.captions(wanted)
    by_scale = {scale: generate(pipe, captions, scale) for scale in SCALES}
    alignment, per_attribute = {}, {}
    for scale, images in by_scale.items():
        seen = reader.read(images, network)
        shown = reader.share_shown(wanted, seen)
        alignment[scale] = [float(shown.mean()), float(shown.std(ddof=1) / np.sqrt(count))]
        per_attribute[scale] = float(
            (seen[:, scenes.BACKGROUND] == wanted[:, scenes.BACKGROUND]).mean()
        )
    cells = torch.stack([by_scale[scale][:12] for scale in SCALES], dim=1).reshape(
        6, 8, 3, scenes.SIDE, scenes.SIDE
    )
    tiled = cells.permute(0, 3, 1, 4, 2).reshape(6 * scenes.SIDE, 8 * scenes.SIDE, 3)
    grid = Image.fromarray((tiled.numpy() * 255).round().astype(np.uint8))
    figures = {
        "captions": count,
        "steps": STEPS,
        "alignment_and_standard_error": alignment,
        "background_right": per_attribute,
        "reader_accuracy": reader_accuracy(network),
        "autoencoder_psnr_db": reconstruction_psnr(pipe.vae),
        "parameters": {
            name: sum(p.numel() for p in getattr(pipe, name).parameters())
            for name in ("unet", "vae", "text_encoder")
        },
        "grid_captions": captions[:12],
    }
    return figures, grid


def write_card(weights: Path, figures: dict[str, Any]) -> None:
    """Write `README.md`, the model card, from the measured figures and the training record."""
    training = json.loads((weights / "training.json").read_text())
    settings, stages = training["settings"], training["stages"]
    scores = "\n".join(
        f"| {float(scale):g} | {mean:.3f} ± {1.96 * error:.3f} | {figures['background_right'][scale]:.2f} |"
        for scale, (mean, error) in figures["alignment_and_standard_error"].items()
    )
    curves = "\n".join(
        f"| {name} | {stage['steps']} of {settings[f'{name}_steps']} | {stage['seconds'] / 60:.0f} | "
        + " | ".join(
            f"{stage['loss'][round(k * (len(stage['loss']) - 1))][1]:.4f}"
            for k in (0, 0.25, 0.5, 0.75, 1)
        )
        + " |"
        for name, stage in stages.items()
    )
    captions = "\n".join(
        f"{i + 1}. {caption}" for i, caption in enumerate(figures["grid_captions"])
    )
    parameters = ", ".join(f"{name} {count:,}" for name, count in figures["parameters"].items())
    versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
    unfinished = [
        name for name, stage in stages.items() if stage["steps"] < settings[f"{name}_steps"]
    ]
    best = max(mean for mean, _ in figures["alignment_and_standard_error"].values())
    state = (
        f"**Unfinished: the {' and the '.join(unfinished)} stopped before its last step.**\n\n"
        if unfinished
        else ""
    )
    if best < AIM:
        state += f"**Below its aim: an alignment of {AIM:.2f} at the best scale; it has {best:.2f}.**\n\n"
    values = (
        figures
        | {"state": state}
        | {"scores": scores, "curves": curves, "captions_shown": captions, "counts": parameters}
    )
    values |= settings | {"versions": versions, "hardware": training["hardware"]}
    (weights / "README.md").write_text(CARD.format(**values))


def _pixels(images: np.ndarray) -> Float[Tensor, "n 3 64 64"]:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def main(
    weights: Annotated[Path, typer.Argument(help="the folder that `train --export` wrote")],
    captions: Annotated[
        int, typer.Option(help="held-out captions per guidance scale, at least 12")
    ] = 256,
) -> None:
    """Measure the exported model and write its card, its figures and its grid beside it."""
    figures, grid = measure(weights, captions)
    figures = json.loads(json.dumps(figures))
    (weights / "measured.json").write_text(json.dumps(figures, indent=1) + "\n")
    grid.resize((grid.width * 2, grid.height * 2), Image.Resampling.NEAREST).save(
        weights / "grid.png"
    )
    write_card(weights, figures)
    typer.echo(json.dumps(figures["alignment_and_standard_error"]))


if __name__ == "__main__":
    typer.run(main)
