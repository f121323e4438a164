"""Measure mini-sd and write its model card (`python -m benchmarks.card`).

The card holds only what was measured or recorded: reader and autoencoder on held-out scenes,
alignment over guidance scales on held-out captions, and the training record that
`sdbench/models/mini_sd/train.py` wrote.
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
from jaxtyping import Float, UInt8
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from sdbench.models.mini_sd import networks, reader, scenes
from sdbench.models.pipeline import Pipeline, invoke

SCALES = (1.0, 2.5, 5.0, 7.5)
STEPS = 50
GUIDED = 5.0  # the default scale, at which the model is judged
AIMS = {"alignment": 0.96, "background": 0.97, "autoencoder": 36.0}
"""At least so much: shares at the default scale, and dB."""
GAP = 0.2  # of alignment, by which the default scale is above w = 1
SAME = 0.02  # shares of right backgrounds that are this near are called alike
SHOWN = 12  # captions in the grid
TEMPLATE = Path(__file__).with_name("card.md")


def generate(
    pipe: Pipeline,
    captions: Sequence[str],
    guidance_scale: float,
    *,
    batch: int = 64,
    shape: tuple[int, int, int] = (4, networks.LATENT, networks.LATENT),
    without_mean: bool = False,
) -> Float[Tensor, "n 3 64 64"]:
    """One image per caption with 50 DDIM steps, in [0, 1]; image i has the noise of seed i.

    Args:
        pipe: the model.
        captions: of the images.
        guidance_scale: w.
        batch: images per call.
        shape: of one image's latents, channels first.
        without_mean: take the mean of each channel off the initial noise.
    """
    noise = torch.cat([_noise(seed, shape) for seed in range(len(captions))])
    if without_mean:
        noise = noise - noise.mean(dim=(2, 3), keepdim=True)
    starts = range(0, len(captions), batch)
    batches = [
        _images(pipe, list(captions[start : start + batch]), guidance_scale, noise[start:][:batch])
        for start in track(starts, description=f"w = {guidance_scale:g}")
    ]
    return torch.cat(batches).clamp(0, 1).float().cpu()


def _noise(seed: int, shape: tuple[int, int, int]) -> Float[Tensor, "1 channels side side"]:
    """What the pipeline would draw itself from a generator with this seed."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(1, *shape, generator=generator)


def _images(
    pipe: Pipeline,
    captions: list[str],
    guidance_scale: float,
    noise: Float[Tensor, "n channels side side"],
) -> Float[Tensor, "n 3 64 64"]:
    """The images of one call."""
    call = {
        "prompt": captions,
        "latents": noise,
        "num_inference_steps": STEPS,
        "guidance_scale": guidance_scale,
        "output_type": "pt",
    }
    return invoke(pipe, call).images


def reader_accuracy(network: reader.Reader, count: int = 4096) -> float:
    """Mean attribute accuracy of the reader on held-out drawn scenes."""
    rng = np.random.default_rng(2)
    rows = scenes.sample(count, rng, split="test")
    seen = [
        reader.read(_pixels(images), network)
        for images in np.array_split(scenes.draw(rows, rng), count // 256)
    ]
    return reader.attribute_accuracy(np.concatenate(seen), rows)


@torch.no_grad()
def reconstruction_psnr(vae: Any, count: int = 512) -> float:
    """Mean PSNR in dB of the autoencoder on held-out drawn scenes."""
    rng = np.random.default_rng(3)
    images = _pixels(scenes.draw(scenes.sample(count, rng, split="test"), rng))
    latents = vae.encode(images * 2 - 1).latent_dist.mean
    decoded = vae.decode(latents).sample.add(1).div(2).clamp(0, 1)
    return float(-10 * (decoded - images).square().mean(dim=(1, 2, 3)).log10().mean())


def measure(weights: Path, count: int) -> tuple[dict[str, Any], Image.Image]:
    """All figures of the card, and the grid of images that it shows."""
    pipe = StableDiffusionPipeline.from_pretrained(weights / "pipeline", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)

    network = reader.Reader().eval()
    trained = load_file(weights / "reader.safetensors")
    network.load_state_dict({name: weight.float() for name, weight in trained.items()})

    # The same captions and the same noise at every scale, and noise that has no mean to read.
    wanted = scenes.sample(count, np.random.default_rng(4), split="test")
    captions = scenes.captions(wanted)
    by_scale = {scale: generate(pipe, captions, scale) for scale in SCALES}
    seen = {scale: reader.read(images, network) for scale, images in by_scale.items()}
    centred = reader.read(generate(pipe, captions, GUIDED, without_mean=True), network)

    # Scales are the keys of what was measured at each.
    figures = {
        "weights": weights.as_posix(),
        "captions": count,
        "steps": STEPS,
        "alignment_and_standard_error": {
            scale: _mean_and_error(reader.share_shown(wanted, rows)) for scale, rows in seen.items()
        },
        "right_by_kind": {
            scale: reader.share_by_kind(wanted, rows) for scale, rows in seen.items()
        },
        "without_noise_mean": {
            "alignment": float(reader.share_shown(wanted, centred).mean()),
            **reader.share_by_kind(wanted, centred),
        },
        "reader_accuracy": reader_accuracy(network),
        "autoencoder_psnr_db": reconstruction_psnr(pipe.vae),
        "parameters": {
            name: sum(p.numel() for p in getattr(pipe, name).parameters())
            for name in ("unet", "vae", "text_encoder")
        },
        "grid_captions": captions[:SHOWN],
    }
    return figures, grid([by_scale[scale][:SHOWN] for scale in SCALES])


def _mean_and_error(shares: Float[np.ndarray, " n"]) -> list[float]:
    return [float(shares.mean()), float(shares.std(ddof=1) / np.sqrt(len(shares)))]


def grid(images: Sequence[Float[Tensor, "12 3 64 64"]]) -> Image.Image:
    """Six rows of two captions, each at the four scales: 6 x 8 images.

    Args:
        images: for each of `SCALES`, those of the first twelve captions.
    """
    side = scenes.SIDE
    # (scale, caption) of each image => row, place in the row => pixels of the whole.
    cells = torch.stack(list(images), dim=1).reshape(6, 8, 3, side, side)
    tiled = cells.permute(0, 3, 1, 4, 2).reshape(6 * side, 8 * side, 3)
    return Image.fromarray((tiled.numpy() * 255).round().astype(np.uint8))


def write_card(weights: Path, figures: Mapping[str, Any]) -> None:
    """Write `README.md`, the model card, from the measured figures and the training record."""
    training = json.loads((weights / "training.json").read_text())
    settings = training["settings"]
    versions = training["versions"].items()
    shown = enumerate(figures["grid_captions"], start=1)
    texts = {
        "state": _state(figures, training),
        "scores": _scores(figures),
        "kinds": " | ".join(reader.KINDS),
        "rules": "|---" * len(reader.KINDS),
        "without_mean": _without_mean(figures),
        "curves": curve_rows(training),
        "training_command": _training_command(training, figures["weights"]),
        "taken_over": _taken_over(training),
        "captions_shown": "\n".join(f"{number}. {caption}" for number, caption in shown),
        "counts": ", ".join(f"{name} {count:,}" for name, count in figures["parameters"].items()),
        "versions": ", ".join(f"{name} {version}" for name, version in versions),
        "hardware": training["hardware"],
    }
    # Where names meet, the texts for the card come before raw figures.
    card = TEMPLATE.read_text().format(**{**figures, **settings, **texts})
    (weights / "README.md").write_text(card)


def _state(figures: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """What is wrong with the model, in bold; nothing where it is finished and reaches its aim."""
    settings = training["settings"]
    unfinished = [
        name
        for name, stage in training["stages"].items()
        if stage["steps"] < settings[f"{name}_steps"]
    ]
    state = ""
    if unfinished:
        names = " and the ".join(unfinished)
        state += f"**Unfinished: the {names} stopped before its last step.**\n\n"
    if missed := missed_aims(figures):
        state += f"**Below its aims: {'; '.join(missed)}.**\n\n"
    return state


def missed_aims(figures: Mapping[str, Any]) -> list[str]:
    """What the model was to reach and does not, in words."""
    alignment = {
        float(scale): mean for scale, (mean, _) in figures["alignment_and_standard_error"].items()
    }
    reached = {
        "alignment": alignment[GUIDED],
        "background": figures["right_by_kind"][str(GUIDED)]["background"],
        "autoencoder": figures["autoencoder_psnr_db"],
    }
    missed = [
        f"{name} of {aim:g} (it has {reached[name]:.3f})"
        for name, aim in AIMS.items()
        if reached[name] < aim
    ]
    gap = alignment[GUIDED] - alignment[1.0]
    return missed + ([f"w = 1 lower by {GAP:g} (it is by {gap:.3f})"] if gap < GAP else [])


def _scores(figures: Mapping[str, Any]) -> str:
    """Rows of the card's first table."""
    rows = []
    for scale, (mean, error) in figures["alignment_and_standard_error"].items():
        shares = " | ".join(f"{share:.3f}" for share in figures["right_by_kind"][scale].values())
        rows.append(f"| {float(scale):g} | {mean:.3f} ± {1.96 * error:.3f} | {shares} |")
    return "\n".join(rows)


def _without_mean(figures: Mapping[str, Any]) -> str:
    """What the mean of the initial noise decides, in a sentence."""
    with_mean = figures["alignment_and_standard_error"][str(GUIDED)][0]
    background = figures["right_by_kind"][str(GUIDED)]["background"]
    centred = figures["without_noise_mean"]
    apart = abs(centred["background"] - background)
    verdict = "The model does not read" if apart <= SAME else "The model reads"
    return (
        f"At w = {GUIDED:g} the alignment is {with_mean:.3f} and {background:.1%} of the "
        "backgrounds are right; with the mean of each channel taken off the initial noise they are "
        f"{centred['alignment']:.3f} and {centred['background']:.1%}. {verdict} the background "
        "from the mean of the noise."
    )


def _training_command(training: Mapping[str, Any], weights: str) -> str:
    """The command that trained the model, with the stages that it trained where not all."""
    stages = training["stages"]
    trained = [name for name, stage in stages.items() if "versions" not in stage]
    chosen = [] if len(trained) == len(stages) else ["--from MODEL"]
    chosen += [f"--stage {name}" for name in trained] if chosen else []
    command = "python -m sdbench.models.mini_sd.train --out runs/mini-sd"
    return " ".join([command, *chosen, "--export", weights])


def _taken_over(training: Mapping[str, Any]) -> str:
    """Which stages an earlier model had, and with which torch; nothing where all were trained."""
    older = {
        name: stage["versions"]["torch"]
        for name, stage in training["stages"].items()
        if "versions" in stage
    }
    if not older:
        return ""
    torches = ", ".join(sorted({*older.values()}))
    return (
        f" MODEL is the model before: the stages {', '.join(older)} are its own, trained with "
        f"torch {torches}."
    )


def curve_rows(training: Mapping[str, Any]) -> str:
    """Rows of the card's table of losses."""
    rows = []
    for name, stage in training["stages"].items():
        curve = stage["loss"]
        # The points nearest to the start, a quarter, half, three quarters and the end.
        places = [round(share * (len(curve) - 1)) for share in (0, 0.25, 0.5, 0.75, 1)]
        losses = " | ".join(f"{curve[place][1]:.4f}" for place in places)
        steps = f"{stage['steps']} of {training['settings'][f'{name}_steps']}"
        rows.append(f"| {name} | {steps} | {stage['seconds'] / 60:.0f} | {losses} |")
    return "\n".join(rows)


def _pixels(images: UInt8[np.ndarray, "n 64 64 3"]) -> Float[Tensor, "n 3 64 64"]:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def main(
    weights: Annotated[Path, typer.Argument(help="the folder that `train --export` wrote")],
    captions: Annotated[
        int, typer.Option(help="held-out captions per guidance scale, at least 12")
    ] = 256,
) -> None:
    """Measure the exported model and write its card, its figures and its grid."""
    figures, image = measure(weights, captions)
    # As they are read back: scales become texts.
    figures = json.loads(json.dumps(figures))
    (weights / "measured.json").write_text(json.dumps(figures, indent=1) + "\n")

    size = (image.width * 2, image.height * 2)
    image.resize(size, Image.Resampling.NEAREST).save(weights / "grid.png")
    write_card(weights, figures)
    typer.echo(json.dumps(figures["alignment_and_standard_error"]))


if __name__ == "__main__":
    typer.run(main)
