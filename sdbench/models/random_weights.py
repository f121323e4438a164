"""An architecture becomes a stock pipeline with random weights.

Nothing is downloaded, and no weight is in memory twice. Time, memory and work of such a pipeline
are those of the published model; its images mean nothing. Which architectures there are is in
`architectures.py`.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from sdbench.models.architectures import Architecture, Part
from sdbench.models.mini_sd.networks import write_tokenizer
from sdbench.models.pipeline import Pipeline

MARK = "sdbench_random_weights"
MEMINFO = Path("/proc/meminfo")


def build(
    architecture: Architecture, *, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Any:
    """A pipeline of an architecture, its weights random.

    Weights are normal with variance 1 / fan-in, which keeps activations at their scale, norms one
    and biases zero, so that predictions are finite and depend on the prompt. Nothing is a zero that
    a trained model would not have. Prompts are encoded by mini-sd's tokenizer, byte by byte where
    it lacks a word, to the family's length.

    Args:
        architecture: what to build.
        dtype: of the weights; T5 keeps some in float32 where `from_pretrained` does.
        device: where they are made.
        seed: of the weights; the same on every machine of one kind.

    Raises:
        ValueError: too little free memory for the weights; nothing has been allocated then.
    """
    require_memory(architecture, dtype, device)
    # All buffers come before the first weight: computing SD 3.5's position embedding takes several
    # times its size.
    networks = {name: _empty(part) for name, part in architecture.networks.items()}
    generator = torch.Generator(device).manual_seed(seed)
    for network in networks.values():
        fill(network, dtype, device, generator)
    denoiser: Any = networks.get("unet") or networks["transformer"]
    denoiser.register_to_config(**{MARK: True})
    parts = {**networks, **_tokenizers(architecture), "scheduler": architecture.scheduler.make()}
    return getattr(diffusers, architecture.pipeline)(**parts, **architecture.settings)


def has_random_weights(pipe: Pipeline) -> bool:
    """Whether a pipeline's denoiser was built here."""
    # Its configuration says so, and that is copied and saved with it.
    # A compiled network is asked for its length when it is asked whether it is true.
    candidates = [getattr(pipe, name, None) for name in ("unet", "transformer")]
    denoiser = next((part for part in candidates if part is not None), None)
    return bool(getattr(getattr(denoiser, "config", None), MARK, False))


def fill(
    network: nn.Module, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    """Replace each parameter of a network on the meta device by a random one.

    Buffers are moved and cast as loading does. A new parameter is made in its dtype on its
    device and filled in place, so beyond the finished weights no memory is needed. Tied parameters
    stay tied.
    """
    filled: dict[nn.Parameter, nn.Parameter] = {}
    for owner, name, tensor, kind in _tensors(network, dtype):
        if isinstance(tensor, nn.Parameter):
            if tensor not in filled:
                values = torch.empty(tensor.shape, dtype=kind, device=device)
                _randomise(values, name, generator)
                filled[tensor] = nn.Parameter(values, requires_grad=tensor.requires_grad)
            owner.register_parameter(name, filled[tensor])
        else:
            setattr(owner, name, tensor.to(device, kind))


def needed_bytes(architecture: Architecture, dtype: torch.dtype) -> int:
    """Bytes of all parameters and buffers of an architecture, which is not built for it."""
    with torch.device("meta"):
        networks = [part.make() for part in architecture.networks.values()]
    sizes = {
        tensor: tensor.numel() * kind.itemsize
        for net in networks
        for *_, tensor, kind in _tensors(net, dtype)
    }
    return sum(sizes.values())


def require_memory(architecture: Architecture, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse an architecture whose weights do not fit into a device's free memory.

    Raises:
        ValueError: says how much is needed, how much there is, and which other dtypes would fit.
    """
    needed = needed_bytes(architecture, dtype)
    free = free_bytes(device)
    if needed <= free:
        return
    others = {
        other: needed_bytes(architecture, other)
        for other in (torch.bfloat16, torch.float16)
        if other != dtype
    }
    hints = [
        f"{_named(other)} needs {size / 1e9:.1f} GB"
        for other, size in others.items()
        if size <= free
    ]
    raise ValueError(
        f"{architecture.name} in {_named(dtype)} needs {needed / 1e9:.1f} GB, but the "
        f"{device.type} has {free / 1e9:.1f} GB free; "
        f"{' and '.join(hints) or 'no other dtype fits either'}"
    )


def free_bytes(device: torch.device) -> int:
    """Free memory of a device; all memory where the system does not say what is free (macOS)."""
    if device.type == "cuda":
        # What torch has freed, it keeps for its next use.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if MEMINFO.exists():
        available = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
        assert available, f"{MEMINFO} has no MemAvailable"
        return int(available[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _empty(part: Part) -> nn.Module:
    """A network whose parameters are on the meta device; its buffers are computed."""
    # Buffers such as position ids, sines and cosines have no random twin.
    with init_empty_weights(include_buffers=False):
        network = part.make().eval()
    if hasattr(network, "tie_weights"):  # moving to the meta device parts what was one parameter
        network.tie_weights()
    return network


def _tensors(
    network: nn.Module, dtype: torch.dtype
) -> Iterator[tuple[nn.Module, str, Shaped[Tensor, "*shape"], torch.dtype]]:
    """Every parameter and buffer: its owner, its name there, itself, and its dtype once loaded.

    That dtype is what `from_pretrained` gives: what is no part of a checkpoint keeps the dtype that
    it was computed in, and transformers keeps some layers in float32 when asked for float16.
    """
    precise = (
        getattr(network, "_keep_in_fp32_modules", None) or () if dtype == torch.float16 else ()
    )
    for path, owner in network.named_modules():
        kept = not set(path.split(".")).isdisjoint(precise)
        for name, parameter in list(owner.named_parameters(recurse=False)):
            yield owner, name, parameter, torch.float32 if kept else dtype
        for name, buffer in list(owner.named_buffers(recurse=False)):
            saved = name not in owner._non_persistent_buffers_set and buffer.is_floating_point()
            yield owner, name, buffer, dtype if saved else buffer.dtype


def _randomise(values: Float[Tensor, "*shape"], name: str, generator: torch.Generator) -> None:
    if values.ndim > 1:
        # Of variance 1 / fan-in, so that activations keep their scale.
        values.normal_(std=math.prod(values.shape[1:]) ** -0.5, generator=generator)
    else:
        values.fill_(name == "weight")  # of a norm


def _tokenizers(architecture: Architecture) -> dict[str, Any]:
    tokenizers = {}
    for name, length in architecture.tokenizers.items():
        with tempfile.TemporaryDirectory() as folder:
            tokenizers[name] = write_tokenizer(Path(folder))
        tokenizers[name].model_max_length = length
    return tokenizers


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
