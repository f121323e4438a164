"""Which models there are, and how one is opened: a name, hub id or path becomes a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdbench.models.architectures import ARCHITECTURES
from sdbench.models.causes import require_own
from sdbench.models.layout import lay_out
from sdbench.models.modular import loops_of
from sdbench.models.modular_folders import INDEX, MODULAR_INDEX
from sdbench.models.opening import PICKLES, open_pipeline, refuse_file
from sdbench.models.pipeline import LatentPipeline, Pipeline, denoiser_of
from sdbench.models.random_weights import build
from sdbench.models.student_pipeline import open_student
from sdbench.models.students import (
    CARD_FILE,
    LORA_FILE,
    has_projection,
    read_card,
    uses_guidance_input,
)
from sdbench.records.files import first_line

MINI_SD = Path(__file__).parent / "mini_sd" / "weights" / "pipeline"
EMOJI_SD = Path(__file__).parent / "emoji_sd" / "weights" / "pipeline"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelSpec:
    """A model known by name.

    Args:
        name: what a study calls it.
        source: a local folder or a hub id, as `DiffusionPipeline.from_pretrained` takes it.
        guidance_scale: its default scale.
        meaning: one line.
        adapter: folder of a distilled student that comes with the model, if any.
    """

    name: str
    source: str
    guidance_scale: float
    meaning: str
    adapter: str | None = None


MODELS: dict[str, ModelSpec] = {
    "mini-sd": ModelSpec(
        "mini-sd",
        str(MINI_SD),
        5.0,
        "Stable Diffusion's classes at a hundredth of the size, shipped with sdbench",
        adapter=str(MINI_SD.parent / "adapter"),
    ),
    "emoji-sd": ModelSpec(
        "emoji-sd",
        str(EMOJI_SD),
        5.0,
        "the same classes, trained on two sets of emoji that people drew, shipped with sdbench",
        adapter=str(EMOJI_SD.parent / "adapter"),
    ),
}


def load(
    model: Any,
    *,
    dtype: str = "float32",
    device: str | None = None,
    random_weights: bool = False,
    weights_variant: str | None = None,
) -> Any:
    """Open a model as a stock diffusers pipeline.

    Args:
        model: a name in `MODELS`, a hub id (`owner/name`), a folder, or a pipeline, which is
            returned as it is. The folder of a student of a range of scales is opened on its base:
            it takes `guidance_scale` in one pass.
        dtype: number format of the weights: float32, float16 or bfloat16.
        device: where it runs; CUDA where there is one, else the CPU.
        random_weights: `model` is a name in `ARCHITECTURES`; build it with random weights, for
            measuring what it costs.
        weights_variant: which of several files with the same weights is read, such as "fp16". By
            default it is the one without a variant, and of a folder that has none of these the
            only variant that is there.

    Returns:
        The pipeline, its progress bar off. On the CPU, memory format and threads are those that
        measured fastest when this process first opened a denoiser of its form, except for a large
        one: see `choose_layout`.

    Raises:
        ValueError: an unknown name, folder or dtype, a hub id that cannot be opened, weights that
            are not there in the variant, a device that is missing or lacks the dtype, or an
            architecture whose weights do not fit into memory.
    """
    if random_weights and str(model) not in ARCHITECTURES:
        raise ValueError(
            f"random_weights needs an architecture: {', '.join(ARCHITECTURES)}; not '{model}'"
        )
    if random_weights and weights_variant is not None:
        raise ValueError(f"random weights have no variant '{weights_variant}' to read")
    if not isinstance(model, str | Path):
        return model
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype '{dtype}'; there are: {', '.join(DTYPES)}")

    # Where a folder holds a student of a range of scales, its base is opened.
    device = device or default_device()
    student = Path(model) / LORA_FILE
    ranged = has_projection(student) or uses_guidance_input(student)

    if random_weights:
        require_dtype(dtype, device)
        pipe = build(ARCHITECTURES[str(model)], dtype=DTYPES[dtype], device=torch.device(device))
    else:
        source = _source(_base_of(student) if ranged else str(model))
        require_dtype(dtype, device)
        pipe = open_pipeline(source, DTYPES[dtype], weights_variant)
    _settle(pipe, device)

    # Last, since from here on the pipeline takes only the student's scales.
    if ranged:
        open_student(pipe, student.parent)
    return pipe


def default_device() -> str:
    """Where a pipeline runs that is given no device."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _settle(pipe: LatentPipeline, device: str) -> None:
    """Bring a pipeline to its device and lay it out there."""
    for loop in loops_of(pipe):
        loop.set_progress_bar_config(disable=True)
    pipe.to(device)
    if device == "cpu" and getattr(pipe, "unet", None) is not None:
        lay_out(pipe)


def _base_of(student: Path) -> str:
    """The model that a student of a range of scales belongs to."""
    model = read_card(student).get("model")
    if model is None:
        raise ValueError(
            f"{student.with_name(CARD_FILE)} does not say which model the student belongs to"
        )
    return str(model)


def own_adapter(pipe: Pipeline) -> str:
    """Folder of the distilled student that comes with a pipeline's model.

    Raises:
        ValueError: none does.
    """
    # A modular pipeline has no such name.
    own = str(getattr(pipe, "name_or_path", type(pipe).__name__))
    for spec in MODELS.values():
        if spec.adapter is not None and spec.source == own:
            return spec.adapter
    raise ValueError(f"'{own}' has no adapter of its own; name one: lora:PATH")


def own_side(pipe: Pipeline) -> int:
    """Pixels along one side of the images that a pipeline makes when no size is given."""
    denoiser: Any = denoiser_of(pipe)
    return int(denoiser.config.sample_size * pipe.vae_scale_factor)


def require_dtype(dtype: str, device: str) -> None:
    """Refuse a device that lacks a dtype; one that computes in it slowly is good enough.

    Raises:
        ValueError: an unknown device, or one that lacks the dtype.
    """
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device '{device}': {first_line(error)}") from None

    # Devices do not say what they lack, so what a denoiser consists of is tried.
    try:
        ones = torch.ones(1, 8, 8, 8, dtype=DTYPES[dtype], device=device)
        torch.nn.functional.conv2d(torch.nn.functional.group_norm(ones, 1), ones)
        torch.nn.functional.scaled_dot_product_attention(ones, ones, ones) @ ones
    # An AssertionError comes where torch was built without the device.
    except (RuntimeError, TypeError, AssertionError) as error:
        require_own(error, f"device '{device}' cannot be used")
        raise ValueError(
            f"{dtype} does not run on device '{device}': {first_line(error)}"
        ) from None


def _source(model: str) -> str:
    if model in MODELS:
        return MODELS[model].source
    if model in ARCHITECTURES:
        raise ValueError(
            f"'{model}' is an architecture without weights: give random_weights=True to measure "
            f"what it costs, or load the trained model '{ARCHITECTURES[model].source}'"
        )
    if Path(model).is_dir():
        if not any((Path(model) / index).exists() for index in (INDEX, MODULAR_INDEX)):
            raise ValueError(
                f"folder '{model}' holds no diffusers pipeline: "
                f"it has no {INDEX} and no {MODULAR_INDEX}"
            )
        return model
    if Path(model).is_file() or Path(model).suffix in {*PICKLES, ".safetensors"}:
        refuse_file(Path(model))
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return model
    raise ValueError(
        f"unknown model '{model}'; there are: {', '.join(MODELS)}, a hub id (owner/name) or a "
        f"folder; and, with random_weights=True: {', '.join(ARCHITECTURES)}"
    )
