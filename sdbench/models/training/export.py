"""The folder of an embedded model, as it ships in the wheel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdbench.models.pipeline import Pipeline


def write(
    pipe: Pipeline,
    reader: Mapping[str, Float[Tensor, "*shape"]],
    saved: Mapping[str, Any],
    folder: Path,
    out: Path,
) -> None:
    """Write a pipeline and a reader in half precision, and the record of their training.

    Args:
        pipe: the trained networks.
        reader: its weights.
        saved: the checkpoint of every stage.
        folder: of the training run.
        out: gets `pipeline/`, `reader.safetensors` and `training.json`.
    """
    # The weights ship in half precision and are opened in float32.
    pipe.to(torch.float16).save_pretrained(out / "pipeline")
    _make_loadable(out / "pipeline" / "text_encoder")
    save_file(
        {name: weight.half().contiguous() for name, weight in reader.items()},
        out / "reader.safetensors",
    )

    # The card is written from what was recorded of each stage.
    record = json.loads((folder / "settings.json").read_text())
    record["stages"] = {
        name: {
            "steps": state["done"],
            "seconds": round(state["seconds"], 1),
            "loss": state["curve"],
        }
        | ({"versions": state["taken_over"]} if "taken_over" in state else {})
        for name, state in saved.items()
    }
    (out / "training.json").write_text(json.dumps(record, indent=1))


def module_of(
    state: Mapping[str, Float[Tensor, "*shape"]], name: str
) -> dict[str, Float[Tensor, "*shape"]]:
    """The weights of one part of a module, by their names in that part."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): weight for key, weight in state.items() if key.startswith(prefix)
    }


def _make_loadable(folder: Path) -> None:
    """Let every version of transformers open a text encoder as float32 and with its weights."""
    # It opens a model in the type that its config names; diffusers takes float32 whatever the file
    # has.
    config = folder / "config.json"
    settings = json.loads(config.read_text()) | {"dtype": "float32"}
    config.write_text(json.dumps(settings, indent=2) + "\n")

    # Versions before 5.6 look for weights under `text_model.`, as published checkpoints have them,
    # and silently start at random without.
    file = folder / "model.safetensors"
    named = {
        f"text_model.{name.removeprefix('text_model.')}": weight
        for name, weight in load_file(file).items()
    }
    save_file(named, file, metadata={"format": "pt"})


def averaged(state: dict[str, Float[Tensor, "*shape"]]) -> dict[str, Float[Tensor, "*shape"]]:
    """The weights in the state of torch's `AveragedModel`."""
    return {
        name.removeprefix("module."): weight
        for name, weight in state.items()
        if name != "n_averaged"
    }
