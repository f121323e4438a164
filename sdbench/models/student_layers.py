"""The layers of a student on its base: loaded, fused into the base's weights, and put back.

What a student's files say of it is in `students.py`.
"""

from __future__ import annotations

import logging
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sdbench.models.bare_weights import uncovered
from sdbench.models.causes import require_own
from sdbench.models.pipeline import LoraPipeline
from sdbench.records.files import first_line

ADAPTER = "student"  # what its low-rank layers are called in a pipeline


def read_weights(file: Path) -> dict[str, Shaped[Tensor, "*shape"]]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{file}' cannot be read: {first_line(error)}") from None


def load_lora(pipe: LoraPipeline, file: Path) -> None:
    """Put the layers of a LoRA on a pipeline, as its adapter `ADAPTER`.

    Raises:
        ValueError: a file that holds none for this pipeline, or not all of one.
        MissingPackage: a package that loading needs is missing.
    """
    try:
        with of_denoiser_alone(), uncovered(pipe):
            pipe.load_lora_weights(
                str(file.parent), weight_name=file.name, adapter_name=ADAPTER, use_safetensors=True
            )
    except Exception as error:
        require_own(error, f"'{file}' cannot be loaded")
        raise ValueError(
            f"'{file}' is no adapter for {type(pipe).__name__}: {first_line(error)}"
        ) from error

    # Of a layer that the file holds one factor of, peft leaves the other on the meta device.
    modules = [module for module in pipe.components.values() if isinstance(module, nn.Module)]
    if any(weight.is_meta for layer in low_rank(modules) for weight in layer.parameters()):
        raise ValueError(
            f"'{file}' is no whole adapter for {type(pipe).__name__}: "
            "it holds only one of a layer's two factors"
        )


def unload_lora(pipe: LoraPipeline) -> None:
    """Take the layers of all LoRAs off a pipeline."""
    with uncovered(pipe):
        pipe.unload_lora_weights()


@contextmanager
def of_denoiser_alone() -> Iterator[None]:
    """Keep diffusers from warning that a LoRA has nothing for the text encoders."""
    # A student never has, so the warning would stand in every run.
    loggers = [
        logging.getLogger(f"diffusers.loaders.{name}")
        for name in ("lora_base", "lora_pipeline", "peft")
    ]

    def needed(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No LoRA keys associated to")

    for logger in loggers:
        logger.addFilter(needed)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(needed)


def low_rank(modules: Sequence[nn.Module]) -> list[Any]:
    """The layers of LoRAs in these modules."""
    return [
        layer
        for module in modules
        for layer in module.modules()
        if isinstance(layer, BaseTunerLayer)
    ]


def refuse_adapters(owner: object, modules: Sequence[nn.Module]) -> None:
    """Refuse a pipeline or a network with layers of a LoRA, and say how they come off.

    Args:
        owner: what the error names.
        modules: of it.

    Raises:
        ValueError: there are such layers; fused ones are still there until they are unloaded.
    """
    layers = low_rank(modules)
    if not layers:
        return
    loaded = {
        name
        for layer in layers
        for kind in layer.adapter_layer_names
        for name in getattr(layer, kind)
    }
    fused = {name for layer in layers for name in layer.merged_adapters}

    way_out = "unload_lora_weights() takes them off"
    if fused == loaded:
        state = "fused, and still loaded"
        way_out += " and leaves their effect in the weights; unfuse_lora() before it ends that, too"
    elif fused:
        state = f"of which only {_listed(fused)} is fused"
    else:
        state = "not fused"
    raise ValueError(
        f"{type(owner).__name__} already has adapters loaded: {_listed(loaded)}, {state}: {way_out}"
    )


def _listed(names: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


def fuse(layers: Sequence[Any], share: float) -> None:
    """Add a share of LoRA layers to the weights that they are on."""
    for layer in layers:
        # Layers that were taken off did not move with the base.
        layer.to(layer.get_base_layer().weight.device)
        layer.set_scale(ADAPTER, share)
        layer.merged_adapters.clear()  # the caller has put back what was merged before
        layer.merge()


class KeptWeights:
    """Weights put aside in a file: in memory they would be part of what is measured."""

    def __init__(self, weights: Sequence[Shaped[Tensor, "*shape"]]) -> None:
        """Write them down as they are."""
        self._weights = weights
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is gone with the object
        weakref.finalize(self, self._file.close)
        torch.save([weight.detach() for weight in weights], self._file)

    def restore(self) -> None:
        """Put them back, bit for bit."""
        self._file.seek(0)
        values = torch.load(self._file, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for weight, value in zip(self._weights, values, strict=True):
                weight.copy_(value)
