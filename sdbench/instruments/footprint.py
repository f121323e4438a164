"""What a denoiser's call takes, without running it: FLOPs, bytes of weights, peak of activations.

The call is made on fake tensors, which have a shape, a dtype and a device but no values, so that
full-size architectures are counted in seconds on any machine. What a call is given is in
`denoiser_arguments.py`, how FLOPs are counted in `cost.py`; peaks of a real run are in `memory.py`.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdbench.instruments.cost import denoiser_flop
from sdbench.instruments.denoiser_arguments import arguments
from sdbench.models.architectures import Architecture
from sdbench.models.stored_weights import stored_tensors


@dataclass(frozen=True)
class Footprint:
    """What one call of a denoiser takes, all its rows together.

    Neither weights nor inputs are in the peaks, but the call's result is.

    Args:
        flop: 2 per multiply-add, of matrix products, convolutions and attention.
        weights_bytes: parameters and buffers; what is tied counts once.
        activation_peak_bytes: the most that is alive at one time of what operations give back, on
            any device. Scratch memory inside an operation depends on the device and is not in it.
        cpu_peak_bytes: the same with the scratch memory of convolutions on a CPU. That of attention
            is not in it: less than 1 MB a thread, however large the image.
    """

    flop: int
    weights_bytes: int
    activation_peak_bytes: int
    cpu_peak_bytes: int


def footprint(
    denoiser: nn.Module,
    *,
    rows: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    vae_factor: int,
    tokens: int | None = None,
) -> Footprint:
    """Count one call of a denoiser; it is not run, and its weights need not be in memory.

    Attention is counted as fused, as CUDA and the CPU have it: the matrix of scores is never made.

    Args:
        denoiser: of a class that `arguments` knows, on any device, also the meta device. It is left
            as it is.
        rows: of the call.
        height: of the images, in pixels.
        width: of the images, in pixels.
        dtype: of the weights, the latents and the text embeddings.
        vae_factor: pixels per latent along one side, 8 for every architecture in
            `architectures.py`.
        tokens: of the text; without it, what the class's pipeline has by default.

    Raises:
        ValueError: an unknown denoiser, a size that does not fit it, or an operation without a FLOP
            formula.
    """
    with FakeTensorMode(), torch.device("cpu"):
        fake, weights = faked(denoiser, dtype)
        call = arguments(
            denoiser,
            rows=rows,
            height=height,
            width=width,
            dtype=dtype,
            vae_factor=vae_factor,
            tokens=tokens,
        )
        # What was there before the call counts nothing.
        with LiveBytes([*weights, *tree_leaves(call)]) as live:
            flop = denoiser_flop(fake, **call)

    weights_bytes = sum(tensor.nbytes for tensor in weights)
    return Footprint(flop, weights_bytes, live.peak_bytes, live.cpu_peak_bytes)


def meta_denoiser(architecture: Architecture) -> Any:
    """The denoiser of an architecture on the meta device: its shapes, without memory for them."""
    part = architecture.networks.get("unet") or architecture.networks["transformer"]
    with torch.device("meta"):
        return part.make().eval()


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes that operations gave back and that are still alive, `peak_bytes`.

    It works on fake tensors. Storages are followed, so views count nothing. `cpu_peak_bytes` has
    what convolutions take on a CPU in it, too.
    """

    def __init__(self, outside: list[Any]) -> None:
        """Take the tensors, among other things, that count nothing."""
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.cpu_peak_bytes = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in stored_tensors(outside)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in stored_tensors(tree_leaves(made)):
            self._follow(tensor.untyped_storage())
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.cpu_peak_bytes = max(
            self.cpu_peak_bytes, self.live_bytes + _scratch_bytes(func, args, made)
        )
        return made

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        size_bytes = storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live_bytes += size_bytes
            weakref.finalize(storage, self._release, key, size_bytes)

    def _release(self, key: int, size_bytes: int) -> None:
        self._known.remove(key)
        self.live_bytes -= size_bytes


def _scratch_bytes(func: Any, args: Any, made: Any) -> int:
    """Bytes that a convolution takes on a CPU besides its output; other operations take none.

    oneDNN computes on copies of weights and input in blocked layouts; when these are gone, the
    output is copied out of such a layout. With channels last only the weights are copied. A single
    row of few elements goes past oneDNN, to a matrix product with the unfolded input. Source:
    `ConvParams::use_mkldnn` and `mkldnn_convolution` of ATen.
    """
    if func is not torch.ops.aten.convolution.default:
        return 0
    source, weight = args[:2]

    # A single row of few elements.
    if len(source) == 1 and source.numel() <= 20_480:
        unfolded = math.prod(weight.shape[2:]) > 1
        return unfolded * math.prod(weight.shape[1:]) * math.prod(made.shape[2:]) * source.itemsize

    if made.is_contiguous(memory_format=torch.channels_last):
        return weight.nbytes
    return max(weight.nbytes + source.nbytes, made.nbytes)


def faked(
    denoiser: nn.Module, dtype: torch.dtype
) -> tuple[nn.Module, list[Shaped[Tensor, "*shape"]]]:
    """A copy of a module, and its parameters and buffers, as if loaded in a dtype.

    For use under a `FakeTensorMode`: its tensors are fake. What learned before learns in it.
    """
    # `deepcopy` takes from its memo what it would copy, so the copy gets the twins.
    twins = {
        id(tensor): torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=kind, requires_grad=tensor.requires_grad
        )
        for tensor, kind in _tensors(denoiser, dtype)
    }
    return copy.deepcopy(denoiser, dict(twins)), list(twins.values())


def _tensors(
    denoiser: nn.Module, dtype: torch.dtype
) -> Iterator[tuple[Shaped[Tensor, "*shape"], torch.dtype]]:
    """Every parameter and buffer with its dtype once loaded."""
    # What is no part of a checkpoint keeps its own.
    for owner in denoiser.modules():
        for parameter in owner.parameters(recurse=False):
            yield parameter, dtype
        for name, buffer in owner.named_buffers(recurse=False):
            saved = name not in owner._non_persistent_buffers_set and buffer.is_floating_point()
            yield buffer, dtype if saved else buffer.dtype
