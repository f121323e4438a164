"""What a denoiser's call takes, without running it: FLOPs, bytes of weights, peak bytes of activations.

The call is made on fake tensors, which have a shape, a dtype and a device but no values, so that full-size
architectures are counted in seconds on any machine. What a call is given is derived from the denoiser's configuration.
How FLOPs are counted is in `cost.py`; peaks of a real run are in `memory.py`.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdbench.instruments.cost import denoiser_flop
from sdbench.models.architectures import Architecture


@dataclass(frozen=True)
class Footprint:
    """What one call of a denoiser takes, all its rows together.

    Neither weights nor inputs are in the peaks, but the call's result is.

    Args:
        flop: 2 per multiply-add, of matrix products, convolutions and attention.
        weights_bytes: parameters and buffers; what is tied counts once.
        activation_peak_bytes: the most that is alive at one time of what operations give back, on any device. Scratch
            memory inside an operation depends on the device and is not in it.
        cpu_peak_bytes: the same with the scratch memory of convolutions on a CPU. That of attention is not in it: less
            than 1 MB a thread, however large the image.
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
        denoiser: of a class that `arguments` knows, on any device, also the meta device. It is left as it is.
        rows: of the call.
        height: of the images, in pixels.
        width: of the images, in pixels.
        dtype: of the weights, the latents and the text embeddings.
        vae_factor: pixels per latent along one side, 8 for every architecture in `architectures.py`.
        tokens: of the text, where they are not as many as the class's pipeline has by default.

    Raises:
        ValueError: an unknown denoiser, a size that does not fit it, or an operation without a FLOP formula.
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
        with LiveBytes([*weights, *tree_leaves(call)]) as live:
            flop = denoiser_flop(fake, **call)
    return Footprint(
        flop, sum(tensor.nbytes for tensor in weights), live.peak_bytes, live.cpu_peak_bytes
    )


def meta_denoiser(architecture: Architecture) -> Any:
    """The denoiser of an architecture on the meta device: its shapes, without memory for them."""
    part = architecture.networks.get("unet") or architecture.networks["transformer"]
    with torch.device("meta"):
        return part.make().eval()


def arguments(
    denoiser: Any,
    *,
    rows: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    vae_factor: int,
    tokens: int | None = None,
) -> dict[str, Any]:
    """What a pipeline calls its denoiser with: the right shapes, zeros and ones in them, on torch's default device.

    Args:
        denoiser: the UNet of Stable Diffusion 1, 2 or XL, or the transformer of Stable Diffusion 3, Flux or PixArt.
        rows: of the call.
        height: of the images, in pixels.
        width: of the images, in pixels.
        dtype: of the latents and the text embeddings.
        vae_factor: pixels per latent along one side.
        tokens: of the text, where they are not as many as the class's pipeline has by default.

    Raises:
        ValueError: an unknown denoiser, no rows, or a size that VAE factor times patch size does not divide.
    """
    name = type(denoiser).__name__
    if name not in _CALLS:
        raise ValueError(f"no call is known for a {name}; there are calls for {', '.join(_CALLS)}")
    known = _CALLS[name]
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    patch = known.patch(denoiser.config)
    multiple = vae_factor * patch
    if min(height, width) < 1 or height % multiple or width % multiple:
        raise ValueError(
            f"height and width must be multiples of {multiple} (VAE factor {vae_factor} x patch size {patch}), "
            f"got {height} x {width}"
        )
    length = known.tokens if tokens is None else tokens
    size = _Size(rows, height // vae_factor, width // vae_factor, length, dtype)
    return known.make(denoiser.config, size) | {"return_dict": False}


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes that operations gave back and that are still alive: `peak_bytes`; works on fake tensors.

    Storages are followed, so views count nothing. `cpu_peak_bytes` has what convolutions take on a CPU in it, too.
    """

    def __init__(self, outside: list[Any]) -> None:
        """Take the tensors, among other things, that count nothing."""
        super().__init__()
        self.live_bytes = self.peak_bytes = self.cpu_peak_bytes = 0
        self._known = {
            tensor.untyped_storage()._cdata for tensor in outside if isinstance(tensor, Tensor)
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.cpu_peak_bytes = max(
            self.cpu_peak_bytes, self.live_bytes + _scratch_bytes(func, args, made)
        )
        return made

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size_bytes = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live_bytes += size_bytes
            weakref.finalize(storage, self._release, key, size_bytes)

    def _release(self, key: int, size_bytes: int) -> None:
        self._known.remove(key)
        self.live_bytes -= size_bytes


def _scratch_bytes(func: Any, args: Any, made: Any) -> int:
    """Bytes that a convolution takes on a CPU beside its output; other operations count as taking none.

    oneDNN computes on copies of weights and input in blocked layouts; when these are gone, the output is copied out of
    such a layout. With channels last only the weights are copied. A single row of few elements goes past oneDNN, to a
    matrix product with the unfolded input. Source: `ConvParams::use_mkldnn` and `mkldnn_convolution` of ATen.
    """
    if func is not torch.ops.aten.convolution.default:
        return 0
    source, weight = args[:2]
    if len(source) == 1 and source.numel() <= 20_480:
        unfolded = math.prod(weight.shape[2:]) > 1
        return unfolded * math.prod(weight.shape[1:]) * math.prod(made.shape[2:]) * source.itemsize
    if made.is_contiguous(memory_format=torch.channels_last):
        return weight.nbytes
    return max(weight.nbytes + source.nbytes, made.nbytes)


def faked(denoiser: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, list[Tensor]]:
    """A copy of a module, and its parameters and buffers: fake tensors, as if loaded in a dtype, learning as before.

    For use under a `FakeTensorMode`.
    """
    twins = {
        id(tensor): torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=kind, requires_grad=tensor.requires_grad
        )
        for tensor, kind in _tensors(denoiser, dtype)
    }
    return copy.deepcopy(denoiser, dict(twins)), list(twins.values())


def _tensors(denoiser: nn.Module, dtype: torch.dtype) -> Iterator[tuple[Tensor, torch.dtype]]:
    """Every parameter and buffer with its dtype once loaded: what is no part of a checkpoint keeps its own."""
    for owner in denoiser.modules():
        for parameter in owner.parameters(recurse=False):
            yield parameter, dtype
        for name, buffer in owner.named_buffers(recurse=False):
            saved = name not in owner._non_persistent_buffers_set and buffer.is_floating_point()
            yield buffer, dtype if saved else buffer.dtype


@dataclass(frozen=True)
class _Size:
    """Of a call: its rows, height and width of the latents, length of the text, and the dtype of both."""

    rows: int
    height: int
    width: int
    tokens: int
    dtype: torch.dtype

    def zeros(self, *shape: int) -> Float[Tensor, "rows ..."]:
        return torch.zeros(self.rows, *shape, dtype=self.dtype)


def _unet(config: Any, size: _Size) -> dict[str, Any]:
    """Of Stable Diffusion 1 and 2; that of XL gets sizes and a pooled text, too (Podell et al. 2023, section 2.2)."""
    if config.addition_embed_type not in (None, "text_time"):
        raise ValueError(
            f"no call is known for a UNet with addition_embed_type {config.addition_embed_type!r}"
        )
    call = {
        "sample": size.zeros(config.in_channels, size.height, size.width),
        "timestep": torch.zeros((), dtype=torch.int64),
        "encoder_hidden_states": size.zeros(
            size.tokens, config.encoder_hid_dim or config.cross_attention_dim
        ),
    }
    if config.addition_embed_type is None:
        return call
    numbers = 6  # height and width of the original, top and left of the crop, height and width of the target
    pooled = config.projection_class_embeddings_input_dim - numbers * config.addition_time_embed_dim
    return call | {
        "added_cond_kwargs": {"text_embeds": size.zeros(pooled), "time_ids": size.zeros(numbers)}
    }


def _sd3(config: Any, size: _Size) -> dict[str, Any]:
    return {
        "hidden_states": size.zeros(config.in_channels, size.height, size.width),
        "timestep": torch.zeros(size.rows),
        "encoder_hidden_states": size.zeros(size.tokens, config.joint_attention_dim),
        "pooled_projections": size.zeros(config.pooled_projection_dim),
    }


def _flux(config: Any, size: _Size) -> dict[str, Any]:
    """The pipeline packs 2 x 2 latents into one token; a token's place is three numbers, the same in every row."""
    places = (size.height // 2) * (size.width // 2)
    return {
        "hidden_states": size.zeros(places, config.in_channels),
        "timestep": size.zeros(),
        "guidance": torch.zeros(size.rows) if config.guidance_embeds else None,
        "encoder_hidden_states": size.zeros(size.tokens, config.joint_attention_dim),
        "pooled_projections": size.zeros(config.pooled_projection_dim),
        "txt_ids": torch.zeros(size.tokens, 3, dtype=size.dtype),
        "img_ids": torch.zeros(places, 3, dtype=size.dtype),
    }


def _pixart(config: Any, size: _Size) -> dict[str, Any]:
    return {
        "hidden_states": size.zeros(config.in_channels, size.height, size.width),
        "timestep": torch.zeros(size.rows, dtype=torch.int64),
        "encoder_hidden_states": size.zeros(size.tokens, config.caption_channels),
        "encoder_attention_mask": torch.ones(size.rows, size.tokens, dtype=torch.int64),
        "added_cond_kwargs": {
            "resolution": size.zeros(2),
            "aspect_ratio": size.zeros(1),
        },  # Sigma ignores them
    }


@dataclass(frozen=True)
class _Call:
    """How a class of denoisers is called.

    Args:
        make: its arguments, from its configuration and the size.
        tokens: length of the text, as its pipeline has it by default.
        patch: latents along one side of what it takes as one, from its configuration.
    """

    make: Callable[[Any, _Size], dict[str, Any]]
    tokens: int
    patch: Callable[[Any], int]


_CALLS = {
    "UNet2DConditionModel": _Call(_unet, 77, lambda config: 1),
    "SD3Transformer2DModel": _Call(
        _sd3, 77 + 256, lambda config: config.patch_size
    ),  # CLIP's and T5's
    "FluxTransformer2DModel": _Call(_flux, 512, lambda config: 2),  # not in its configuration
    "PixArtTransformer2DModel": _Call(_pixart, 300, lambda config: config.patch_size),
}
