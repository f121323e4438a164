"""From a name, a hub id, a path or a pipeline object to a stock diffusers pipeline, laid out for the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from sdbench.models.architectures import ARCHITECTURES
from sdbench.models.random_weights import build
from sdbench.models.students import (
    CARD_FILE,
    EMBEDDING_FILE,
    LORA_FILE,
    open_student,
    read_card,
    told_by_guidance,
)
from sdbench.records.files import first_line

MINI_SD = Path(__file__).parent / "mini_sd" / "weights" / "pipeline"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LARGE = 100e6  # parameters of a denoiser whose layout is not chosen


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
}

_LAYOUTS: dict[tuple[Any, ...], dict[str, Any]] = {}


def load(
    model: Any, *, dtype: str = "float32", device: str | None = None, random_weights: bool = False
) -> Any:
    """Open a model as a stock diffusers pipeline.

    Args:
        model: a name in `MODELS`, a hub id (`owner/name`), a folder, or a pipeline, which is returned as it is. The
            folder of a student of a range of scales is opened on its base: it takes `guidance_scale` in one pass.
        dtype: number format of the weights: float32, float16 or bfloat16.
        device: where it runs; CUDA where there is one, else the CPU.
        random_weights: `model` is a name in `ARCHITECTURES`; build it with random weights, for measuring what it costs.

    Returns:
        The pipeline, its progress bar off. On the CPU, memory format and threads are those that measured fastest when
        this process first opened a denoiser of its form, except for a large one: see `choose_layout`.

    Raises:
        ValueError: an unknown name, folder or dtype, a hub id that cannot be opened, a device that is missing or lacks
            the dtype, or an architecture whose weights do not fit into memory.
    """
    if random_weights and str(model) not in ARCHITECTURES:
        raise ValueError(
            f"random_weights needs an architecture: {', '.join(ARCHITECTURES)}; not '{model}'"
        )
    if not isinstance(model, str | Path):
        return model
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype '{dtype}'; there are: {', '.join(DTYPES)}")
    student = Path(model) / LORA_FILE
    ranged = student.with_name(EMBEDDING_FILE).is_file() or told_by_guidance(student)
    source = None if random_weights else _source(_base_of(student) if ranged else str(model))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _require_dtype(dtype, device)
    if source is None:
        pipe = build(ARCHITECTURES[str(model)], dtype=DTYPES[dtype], device=torch.device(device))
    else:
        pipe = _open(source, dtype)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    if device == "cpu" and hasattr(pipe, "unet"):
        _lay_out(pipe)
    if ranged:  # last: from here on only its own scales are taken
        open_student(pipe, student.parent)
    return pipe


def _base_of(student: Path) -> str:
    """The model that a student of a range of scales belongs to."""
    model = read_card(student).get("model")
    if model is None:
        raise ValueError(
            f"{student.with_name(CARD_FILE)} does not say which model the student belongs to"
        )
    return str(model)


def own_adapter(pipe: Any) -> str:
    """Folder of the distilled student that comes with a pipeline's model.

    Raises:
        ValueError: none does.
    """
    for spec in MODELS.values():
        if spec.adapter is not None and spec.source == str(pipe.name_or_path):
            return spec.adapter
    raise ValueError(
        f"'{pipe.name_or_path}' comes without an adapter of its own; name one: lora:PATH"
    )


def own_side(pipe: Any) -> int:
    """Pixels along one side of the images that a pipeline makes when it is not told a size."""
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    return int(denoiser.config.sample_size * pipe.vae_scale_factor)


def layout(pipe: Any) -> dict[str, Any]:
    """How a pipeline lies on the machine, for the environment record: device, memory format, threads."""
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    kernels = [
        weight
        for weight in denoiser.parameters()
        if weight.ndim == 4 and min(weight.shape[1:3]) > 1
    ]
    last = bool(kernels) and all(
        weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels
    )
    return {
        "device": str(pipe.device),
        "memory_format": "channels_last" if last else "contiguous",
        "threads": torch.get_num_threads(),
    }


def set_layout(pipe: Any, *, memory_format: str | None, threads: int | None) -> None:
    """Give a pipeline's denoiser a memory format and torch a number of threads; None leaves what was chosen."""
    if memory_format is not None:
        denoiser = getattr(pipe, "unet", None) or pipe.transformer
        denoiser.to(
            memory_format=torch.channels_last
            if memory_format == "channels_last"
            else torch.contiguous_format
        )
    if threads is not None:
        torch.set_num_threads(threads)


def _lay_out(pipe: Any) -> None:
    """Choose a layout, once in a process for every form of denoiser: what is opened twice computes the same sums."""
    form = sorted(
        (name, repr(value)) for name, value in pipe.unet.config.items() if not name.startswith("_")
    )
    key = (*form, pipe.unet.dtype, torch.get_num_threads())
    if key not in _LAYOUTS:
        choose_layout(pipe.unet, lambda: _one_step(pipe))
        chosen = layout(pipe)
        _LAYOUTS[key] = _LAYOUTS[(*form, pipe.unet.dtype, chosen["threads"])] = chosen
    set_layout(pipe, memory_format=_LAYOUTS[key]["memory_format"], threads=_LAYOUTS[key]["threads"])


def choose_layout(
    denoiser: torch.nn.Module, step: Callable[[], None], *, margin: float = 0.05
) -> None:
    """Set the memory format and the number of threads under which a step is fastest on this CPU.

    The default stays unless another choice is faster by `margin` in interleaved timings. A denoiser of over 100 M
    parameters, or one whose step takes over a second, is left alone: choosing would cost minutes, and large
    convolutions gain nothing from `channels_last`.
    """
    if sum(parameter.numel() for parameter in denoiser.parameters()) > LARGE:
        return
    step()
    started = time.perf_counter()
    step()
    if time.perf_counter() - started > 1:
        return

    def memory_format(chosen: torch.memory_format) -> Callable[[], Any]:
        return lambda: denoiser.to(memory_format=chosen)

    def threads(chosen: int) -> Callable[[], None]:
        return lambda: torch.set_num_threads(chosen)

    _fastest(
        [memory_format(torch.contiguous_format), memory_format(torch.channels_last)], step, margin
    )
    cores = torch.get_num_threads()
    if cores > 1:
        _fastest([threads(cores), threads(cores // 2)], step, margin)


def _fastest(
    choices: list[Callable[[], Any]], step: Callable[[], None], margin: float, rounds: int = 5
) -> None:
    """Apply the choice with the smallest median time; the first is the default."""
    seconds: list[list[float]] = [[] for _ in choices]
    for _ in range(rounds):
        for apply, taken in zip(choices, seconds, strict=True):
            apply()
            step()
            started = time.perf_counter()
            step()
            taken.append(time.perf_counter() - started)
    medians = [statistics.median(taken) for taken in seconds]
    best = min(range(len(choices)), key=medians.__getitem__)
    choices[best if medians[best] < (1 - margin) * medians[0] else 0]()


def _one_step(pipe: Any) -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    pipe([""] * 4, num_inference_steps=1, output_type="latent", generator=generator)


def _require_dtype(dtype: str, device: str) -> None:
    """Refuse a device that lacks a dtype, by trying what a denoiser consists of: devices do not say what they lack.

    A device that computes in the dtype slowly is good enough.
    """
    try:
        ones = torch.ones(1, 8, 8, 8, dtype=DTYPES[dtype], device=device)
        torch.nn.functional.conv2d(torch.nn.functional.group_norm(ones, 1), ones)
        torch.nn.functional.scaled_dot_product_attention(ones, ones, ones) @ ones
    except (
        RuntimeError,
        TypeError,
        AssertionError,
    ) as error:  # the last where torch was built without the device
        raise ValueError(
            f"{dtype} does not run on device '{device}': {first_line(error)}"
        ) from None


def _open(source: str, dtype: str) -> Any:
    _refuse_pickles(Path(source))
    try:
        return DiffusionPipeline.from_pretrained(source, dtype=DTYPES[dtype], use_safetensors=True)
    except Exception as error:
        raise ValueError(
            f"model '{source}' cannot be opened: {type(error).__name__}: {first_line(error)}"
        ) from error


def _refuse_pickles(folder: Path) -> None:
    """Say of a local pipeline what the loader would not: that weights are there, in a form that is not opened."""
    for file in sorted(folder.glob("*/*.bin")):
        if not any(file.parent.glob("*.safetensors")):
            raise ValueError(
                f"model '{folder}' cannot be opened: {file.parent.name}/{file.name} is a pickle, which can run code "
                "when it is opened; only safetensors are, as `save_pretrained` writes them"
            )


def _source(model: str) -> str:
    if model in MODELS:
        return MODELS[model].source
    if model in ARCHITECTURES:
        raise ValueError(
            f"'{model}' is an architecture without weights: give random_weights=True to measure what it costs, "
            f"or load the trained model '{ARCHITECTURES[model].source}'"
        )
    if Path(model).is_dir():
        if not (Path(model) / "model_index.json").exists():
            raise ValueError(
                f"folder '{model}' holds no diffusers pipeline: it has no model_index.json"
            )
        return model
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return model
    raise ValueError(
        f"unknown model '{model}'; there are: {', '.join(MODELS)}, a hub id (owner/name) or a folder; "
        f"and, with random_weights=True: {', '.join(ARCHITECTURES)}"
    )
