"""Other number formats of a network's weights: what it is in them, and where it can be had.

A copy of a network is put into a format; the network itself stays as it is. How a pipeline runs
such a copy is in `sdbench.variants.precision`.

Source: quantised weights by torchao (https://github.com/pytorch/ao); `float8cast` by diffusers'
`enable_layerwise_casting`.
"""

from __future__ import annotations

import copy
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdbench.models.causes import MissingPackage, missing_module

CALL = "_compiled_call_impl"  # what `Module.__call__` prefers to its own way
TORCHAO = "torchao.quantization"
Put = Callable[[nn.Module, torch.dtype], None]
"""Puts a network into a format; it gets the dtype in which the network computes."""


@dataclass(frozen=True)
class NumberFormat:
    """A form of a denoiser's weights.

    Args:
        name: what stands behind `precision:`.
        meaning: one line.
        put: a network into it.
        computes_in: the dtype of what the network gets and returns; None for that of the pipeline.
    """

    name: str
    meaning: str
    put: Put
    computes_in: torch.dtype | None = None


def _cast(dtype: torch.dtype) -> Put:
    """Weights in another dtype, except those that diffusers keeps in float32."""

    def put(network: nn.Module, own: torch.dtype) -> None:
        kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
        for name, weight in [*network.named_parameters(), *network.named_buffers()]:
            if weight.is_floating_point() and not kept & set(name.split(".")):
                weight.data = weight.data.to(dtype)

    return put


def _quantised(config: str) -> Put:
    """The weights of linear layers as torchao quantises them."""

    def put(network: nn.Module, own: torch.dtype) -> None:
        quantisation = _torchao()
        # By default torchao 0.18 changes the options of torch.compile for the whole process, so
        # that every pipeline that is compiled later would be another one.
        form = getattr(quantisation, config)(set_inductor_config=False)
        quantisation.quantize_(network, form)

    return put


def _torchao() -> Any:
    try:
        # Of a few types that it registers torch 2.14 says that this is not needed any more.
        with warnings.catch_warnings(), _less_said("torch.utils._pytree"):
            warnings.simplefilter("ignore")
            return importlib.import_module(TORCHAO)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name in ("torchao", TORCHAO):
            said = "torchao is not installed: pip install 'sdbench[quantised]'"
        else:
            said = f"torchao does not import: {missing_module(error) or error}"
        raise MissingPackage(said) from None


@contextmanager
def _less_said(logger: str) -> Iterator[None]:
    """Keep a logger to errors for a while."""
    own = logging.getLogger(logger)
    before = own.level
    own.setLevel(logging.ERROR)
    try:
        yield
    finally:
        own.setLevel(before)


def _stored_as(storage: torch.dtype) -> Put:
    """Weights that are stored in one dtype, and cast layer by layer when they are used."""

    def put(network: Any, own: torch.dtype) -> None:
        network.enable_layerwise_casting(storage_dtype=storage, compute_dtype=own)

    return put


FORMATS: dict[str, NumberFormat] = {
    own.name: own
    for own in (
        NumberFormat("bf16", "bfloat16", _cast(torch.bfloat16), torch.bfloat16),
        NumberFormat("fp16", "float16", _cast(torch.float16), torch.float16),
        NumberFormat("fp32", "float32", _cast(torch.float32), torch.float32),
        NumberFormat("int8wo", "int8 weights of linear layers", _quantised("Int8WeightOnlyConfig")),
        NumberFormat(
            "int8dq",
            "int8 weights and activations of linear layers",
            _quantised("Int8DynamicActivationInt8WeightConfig"),
        ),
        NumberFormat(
            "float8wo", "float8 weights of linear layers", _quantised("Float8WeightOnlyConfig")
        ),
        NumberFormat(
            "float8cast",
            "weights stored in float8, cast when used",
            _stored_as(torch.float8_e4m3fn),
        ),
    )
}
"""By name."""


def in_format(network: nn.Module, own: NumberFormat, dtype: torch.dtype) -> nn.Module:
    """A copy of a network in another format.

    Args:
        network: without hooks, and not compiled.
        own: the format.
        dtype: in which the network computes.

    Raises:
        MissingPackage: a package that the format needs is missing.
    """
    made = copy.deepcopy(network)
    # What a caller has put around the network's call is not the copy's.
    vars(made)[CALL] = None
    own.put(made, dtype)
    return made.eval().requires_grad_(False)
