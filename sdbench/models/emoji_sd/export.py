"""From the checkpoints of a finished training run to the folder that ships in the wheel."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from sdbench.models.emoji_sd import networks, stages
from sdbench.models.training.export import averaged, module_of, write

STAGES = ("reader", "autoencoder", "captions", "denoiser")


def export(folder: Path, out: Path) -> None:
    """Write the averaged weights of a finished run as a pipeline folder in half precision.

    Args:
        folder: a training folder in which every stage is finished.
        out: gets `pipeline/`, `reader.safetensors` and `training.json` (settings, curves, versions,
            hardware, time).
    """
    saved = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in STAGES}
    averages = {name: averaged(state["average"]) for name, state in saved.items()}
    write(_assembled(averages, folder), averages["reader"], saved, folder, out)


def _assembled(
    averages: dict[str, dict[str, Float[Tensor, "*shape"]]], folder: Path
) -> StableDiffusionPipeline:
    """The trained networks in a stock pipeline."""
    tokenizer = networks.write_tokenizer(folder / "tokenizer")
    vae = networks.autoencoder()
    unet = networks.denoiser()
    text_encoder = networks.text_encoder(tokenizer)
    unet.load_state_dict(averages["denoiser"])
    # In its stage it was trained together with a probe, which is left behind.
    text_encoder.load_state_dict(module_of(averages["captions"], "text_encoder"))

    # The denoiser knows latents of mean 0 and variance 1.
    vae.load_state_dict(averages["autoencoder"])
    latents = json.loads((folder / "scaling.json").read_text())
    stages.centre(vae, torch.tensor(latents["means"]))
    vae.register_to_config(scaling_factor=latents["scaling"])

    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=networks.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
