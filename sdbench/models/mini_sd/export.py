"""From the checkpoints of a finished training run to the folder that ships in the wheel."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from sdbench.models.mini_sd import networks
from sdbench.models.training.export import averaged, module_of, write

STAGES = ("reader", "autoencoder", "decoder", "captions", "denoiser")


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


def take_over(weights: Path, folder: Path, names: Collection[str]) -> None:
    """Put finished stages of an exported model into a training folder, as if trained there.

    Args:
        weights: a folder that `export` wrote.
        folder: of the new run, whose `settings.json` is written.
        names: the stages, of `STAGES`; each is left alone where the folder has it.

    Raises:
        ValueError: a stage of the exported model had other settings than the new run, or is
            missing there.
    """
    exported = json.loads((weights / "training.json").read_text())
    wanted = json.loads((folder / "settings.json").read_text())["settings"]
    pipe = StableDiffusionPipeline.from_pretrained(weights / "pipeline", use_safetensors=True)
    text_encoder = nn.ModuleDict({"text_encoder": pipe.text_encoder, "probe": networks.probe()})
    states = {
        "reader": load_file(weights / "reader.safetensors"),
        "autoencoder": pipe.vae.state_dict(),
        "decoder": pipe.vae.state_dict(),
        "captions": text_encoder.state_dict(),
        "denoiser": pipe.unet.state_dict(),
    }

    for name in names:
        if name not in exported["stages"]:
            raise ValueError(f"the model in {weights} has no stage '{name}'")
        own = [key for key in wanted if key in ("seed", "pool") or key.startswith(f"{name}_")]
        other = [key for key in own if exported["settings"].get(key) != wanted[key]]
        if other:
            raise ValueError(f"the model in {weights} was trained with another {other[0]}")
        if (folder / f"{name}.pt").exists():
            continue

        record = exported["stages"][name]
        average = {f"module.{key}": weight.float() for key, weight in states[name].items()}
        average["n_averaged"] = torch.tensor(record["steps"])
        state = {"average": average, "done": record["steps"], "curve": record["loss"]}
        versions = record.get("versions", exported["versions"])
        state |= {"seconds": record["seconds"], "taken_over": versions}
        torch.save(state, folder / f"{name}.pt")


def _assembled(averages: dict[str, dict[str, Float[Tensor, "*shape"]]], folder: Path) -> Any:
    """The trained networks in a stock pipeline."""
    tokenizer = networks.write_tokenizer(folder / "tokenizer")
    vae = networks.autoencoder()
    unet = networks.denoiser()
    text_encoder = networks.text_encoder(tokenizer)

    # The pipeline divides latents by the factor that gave them unit variance in training.
    vae.load_state_dict(averages["decoder"])
    vae.register_to_config(scaling_factor=json.loads((folder / "scaling.json").read_text()))
    unet.load_state_dict(averages["denoiser"])

    # In its stage it was trained together with a probe, which is left behind.
    text_encoder.load_state_dict(module_of(averages["captions"], "text_encoder"))

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
