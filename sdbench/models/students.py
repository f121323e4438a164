"""What a distilled student brings to its base: the names of its files, its card, and the embedding of w.

A student of one guidance scale is a LoRA, or a whole denoiser. One of a range of scales is a LoRA whose strength grows
with w from nothing at w = 1, where the student is the conditional teacher. It is told w besides: by the denoiser's own
`guidance` input where it has one, and else by a projection in diffusers' own place for it (`time_cond_proj`), which
adds an embedding of w to that of the timestep. How a student is put into a pipeline and taken out again is in
`variants/adapters.py`.
"""

from __future__ import annotations

import logging
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sdbench.records.files import NONE, NUMBER, first_line, read_json, require

LORA_FILE = "pytorch_lora_weights.safetensors"
DENOISER_FILE = "diffusion_pytorch_model.safetensors"
EMBEDDING_FILE = "guidance_embedding.safetensors"
CARD_FILE = "card.json"
ADAPTER = "student"  # what its low-rank layers are called in a pipeline
WIDTH = 256  # of the embedding of w
SAMPLED = 8  # weights by which a base is told from another


def base_record(denoiser: nn.Module) -> dict[str, Any]:
    """What tells a base from another: its class, its size, and a few values of a few weights."""
    weights = dict(denoiser.named_parameters())
    names = list(weights)[:: max(1, len(weights) // SAMPLED)]
    return {
        "denoiser": type(denoiser).__name__,
        "parameters": sum(weight.numel() for weight in weights.values()),
        "values": {
            name: weights[name].detach().flatten()[:SAMPLED].float().tolist() for name in names
        },
    }


def check_base(denoiser: nn.Module, file: Path) -> None:
    """Hold the card beside a student's weights against a base; a LoRA that did not come from here has none.

    Args:
        denoiser: of the base, as it was before any student.
        file: the student's weights.

    Raises:
        ValueError: another base.
    """
    card = read_card(file)
    if card.get("base") is not None and not _same_base(base_record(denoiser), card["base"]):
        base = f"{card['base']['denoiser']} of {card.get('model')}"
        raise ValueError(f"the student '{file}' is made for another base: {base}")


def strength_at(file: Path, card: Mapping[str, Any], guidance_scale: float) -> float:
    """How much of the LoRA in a file counts at w: all of it, unless its card tells of a range of scales.

    Raises:
        ValueError: a scale that the student was not made for.
    """
    made_for, w_range = card.get("guidance_scale"), card.get("w_range")
    between: Any = w_range or (made_for, made_for)
    lo, hi = between
    if lo is not None and not lo <= guidance_scale <= hi:
        scales = (
            f"a guidance scale of {lo:g}" if lo == hi else f"guidance scales of {lo:g} to {hi:g}"
        )
        raise ValueError(f"the student '{file}' is made for {scales}, not {guidance_scale:g}")
    return 1.0 if w_range is None else float(strength(w_range, guidance_scale))


def strength(
    w_range: Sequence[float], guidance_scale: Float[Tensor, " rows"] | float
) -> Float[Tensor, " rows"] | float:
    """How much of a LoRA for a range of scales counts at one of them: nothing at w = 1, all of it at the highest.

    The guided prediction is `c + (w - 1) (c - u)`: what a student adds to the conditional one is nothing at w = 1.

    Args:
        w_range: the lowest and the highest scale.
        guidance_scale: w, one or one for every row.
    """
    return ((guidance_scale - 1) / (w_range[1] - 1)) ** 0.5


def read_card(file: Path) -> dict[str, Any]:
    """The card beside a student's weights, empty where there is none.

    Raises:
        ValueError: it cannot be read, or one of the fields that matter here is of another kind.
    """
    path = file.with_name(CARD_FILE)
    if not path.exists():
        return {}
    card = read_json(path)
    optional = {
        "model": (str, NONE),
        "guidance_scale": (*NUMBER, NONE),
        "w_range": (list, NONE),
        "base": (dict, NONE),
    }
    require(card, optional, source=str(path))
    scale, between, base = (card.get(name) for name in ("guidance_scale", "w_range", "base"))
    if base is not None:
        require(
            base,
            {"denoiser": (str,), "parameters": (int,), "values": (dict,)},
            source=f"{path}, base",
        )
    lists = {"guidance_scale": [scale or 0], "w_range": between or [0]} | (
        base["values"] if base else {}
    )
    wrong = [name for name, values in lists.items() if not _are_numbers(values)]
    if wrong or (between is not None and len(between) != 2):
        raise ValueError(
            f"{path}: {(wrong or ['w_range'])[0]!r} does not hold the numbers that it should"
        )
    return card


def _are_numbers(values: Any) -> bool:
    """Whether it is a list of numbers of a size that floats can hold."""
    return isinstance(values, list) and all(
        isinstance(value, NUMBER) and not isinstance(value, bool) and abs(value) < 1e30
        for value in values
    )


def _same_base(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Equal but for the rounding of a dtype."""
    if any(found[name] != wanted[name] for name in ("denoiser", "parameters")):
        return False
    known = found["values"]
    return all(
        len(known.get(name, ())) == len(values) > 0
        and np.allclose(known[name], values, rtol=4e-3, atol=1e-5)  # bfloat16's 2^-9
        for name, values in wanted["values"].items()
    )


def fuse(layers: Sequence[Any], share: float) -> None:
    """Add a share of LoRA layers to the weights that they are on."""
    for layer in layers:
        layer.to(
            layer.get_base_layer().weight.device
        )  # layers that were taken off stay where they were
        layer.set_scale(ADAPTER, share)
        layer.merged_adapters.clear()  # the caller has put back what was merged before
        layer.merge()


def low_rank(modules: Sequence[nn.Module]) -> list[Any]:
    """The layers of LoRAs in these modules."""
    return [
        layer
        for module in modules
        for layer in module.modules()
        if isinstance(layer, BaseTunerLayer)
    ]


def takes_guidance(denoiser: Any) -> bool:
    """Whether a denoiser is told a guidance scale as an input, as Flux is."""
    return bool(denoiser.config.get("guidance_embeds", False))


def told_by_guidance(file: Path) -> bool:
    """Whether the student in a file is one of a range of scales without a projection."""
    return (
        read_card(file).get("w_range") is not None and not file.with_name(EMBEDDING_FILE).is_file()
    )


def place_of_projection(pipe: Any, denoiser: Any) -> Any:
    """The layer of a UNet that takes the projection of the embedding of w.

    Raises:
        ValueError: a pipeline that has no such embedding, or a denoiser that has a projection already.
    """
    embedding: Any = getattr(denoiser, "time_embedding", None)
    if not hasattr(pipe, "get_guidance_scale_embedding") or not hasattr(embedding, "cond_proj"):
        raise ValueError(
            f"{type(pipe).__name__} has no `time_cond_proj` to tell a scale by: learn one scale only"
        )
    if embedding.cond_proj is not None:
        raise ValueError(
            f"the {type(denoiser).__name__} already takes an embedding of the guidance scale"
        )
    return embedding


class Projection(nn.Linear):
    """Of the embedding of w less that of w = 1, so that at w = 1 it adds nothing."""

    def forward(self, embedding: Float[Tensor, "rows width"]) -> Float[Tensor, "rows channels"]:
        """Project it; the embedding of w = 1 is sines of 0 and cosines of 0."""
        sines, cosines = embedding.chunk(2, dim=1)
        return super().forward(torch.cat([sines, cosines - 1], dim=1))


def add_projection(pipe: Any, denoiser: Any) -> Projection:
    """Give a UNet the projection of the embedding of w, all zeros: it then changes nothing.

    As long as its configuration has no `time_cond_proj_dim` the pipeline guides as before and passes no embedding.

    Raises:
        ValueError: as `place_of_projection` says.
    """
    embedding = place_of_projection(pipe, denoiser)
    weight = embedding.linear_1.weight
    projection = Projection(
        WIDTH, embedding.linear_1.in_features, bias=False, device=weight.device, dtype=weight.dtype
    )
    nn.init.zeros_(projection.weight)
    embedding.cond_proj = projection
    return projection


def remove_projection(denoiser: Any) -> None:
    """Take the projection off again."""
    denoiser.time_embedding.cond_proj = None


def embedded(pipe: Any, scale: Float[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
    """The embedding of guidance scales, as stock pipelines make it: of w - 1, on the CPU."""
    found: Tensor = pipe.get_guidance_scale_embedding(scale - 1, embedding_dim=WIDTH)
    return found


@contextmanager
def of_denoiser_alone() -> Iterator[None]:
    """Keep diffusers from warning that a LoRA has nothing for the text encoders: a student has not."""
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


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{file}' cannot be read: {first_line(error)}") from None


def load_lora(pipe: Any, file: Path) -> None:
    """Put the layers of a LoRA on a pipeline, as its adapter `ADAPTER`.

    Raises:
        ValueError: a file that holds none for this pipeline, or not all of one.
    """
    try:
        with of_denoiser_alone():
            pipe.load_lora_weights(
                str(file.parent), weight_name=file.name, adapter_name=ADAPTER, use_safetensors=True
            )
    except Exception as error:
        raise ValueError(
            f"'{file}' is no adapter for {type(pipe).__name__}: {first_line(error)}"
        ) from error
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    if any(weight.is_meta for layer in low_rank(modules) for weight in layer.parameters()):
        raise ValueError(
            f"'{file}' is no whole adapter for {type(pipe).__name__}: of a layer it holds one factor alone"
        )


def load_projection(pipe: Any, denoiser: Any, file: Path) -> None:
    """Give a UNet the projection of a student.

    Raises:
        ValueError: a file that holds none for this UNet, or as `place_of_projection` says; nothing is changed then.
    """
    weight = read_weights(file).get("weight")
    width = place_of_projection(pipe, denoiser).linear_1.in_features
    if weight is None or weight.shape != (width, WIDTH):
        raise ValueError(f"'{file}' holds no projection of {WIDTH} to {width} values")
    with torch.no_grad():
        add_projection(pipe, denoiser).weight.copy_(weight)


class KeptWeights:
    """Weights put aside in a file: in memory they would be part of what is measured."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        """Write them down as they are."""
        self._weights, self._file = weights, tempfile.TemporaryFile()  # noqa: SIM115 - it is gone with the object
        weakref.finalize(self, self._file.close)
        torch.save([weight.detach() for weight in weights], self._file)

    def restore(self) -> None:
        """Put them back, bit for bit."""
        self._file.seek(0)
        with torch.no_grad():
            for weight, value in zip(
                self._weights,
                torch.load(self._file, map_location="cpu", weights_only=True),
                strict=True,
            ):
                weight.copy_(value)


def open_student(pipe: Any, folder: Path) -> None:
    """Make a base the student of a range of scales, for good: it then takes w in one pass, as a stock pipeline.

    Where a call asks for another w than the last, the layers are fused anew into the base's own weights, so that a step
    costs what it costs without them. The pipeline is not to be saved: the student's folder is.

    Raises:
        ValueError: a student of another base; in a call, a scale that it was not made for.
    """
    denoiser: Any = getattr(pipe, "unet", None) or pipe.transformer
    file = folder / LORA_FILE
    card = read_card(file)
    check_base(denoiser, file)
    load_lora(pipe, file)
    layers = low_rank([denoiser])
    kept = KeptWeights(
        [weight for layer in layers for weight in layer.get_base_layer().parameters()]
    )
    pipe.unload_lora_weights()
    if not told_by_guidance(file):
        load_projection(pipe, denoiser, folder / EMBEDDING_FILE)
        denoiser.register_to_config(time_cond_proj_dim=WIDTH)
    fused_for: float | None = None

    def as_asked(*_: Any) -> None:
        nonlocal fused_for
        if pipe.guidance_scale != fused_for:
            share = strength_at(file, card, pipe.guidance_scale)
            kept.restore()
            fuse(layers, share)
            fused_for = pipe.guidance_scale

    denoiser.register_forward_pre_hook(as_asked)
