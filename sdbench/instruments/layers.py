"""Where in a network a call is: its kind of layer, and its block.

A layer belongs to the outermost module that says what it does: a linear layer inside of attention
is attention. Whether attention looks at itself or at a text is known when it is called. Attention
over one sequence of image and text is self-attention.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from sdbench.models.pipeline import method_parameters

SELF_ATTENTION = "self-attention"
CROSS_ATTENTION = "cross-attention"
OTHER = "other"
KINDS = (
    "convolution",
    SELF_ATTENTION,
    CROSS_ATTENTION,
    "feed-forward",
    "normalisation",
    "linear",
    OTHER,
)
"""Kinds of layers. `linear` are projections outside of attention and feed-forward layers, `other`
is what lies between layers: additions, activations, copies."""

_ATTENTION = "attention"  # of which kind, its call says
_BY_CLASS = (
    (re.compile(r"Attention(?!.*(Block|Layer))"), _ATTENTION),
    (re.compile(r"FeedForward|MLP|Mlp|FFN|GluMBConv"), "feed-forward"),
    (re.compile(r"Norm"), "normalisation"),
    (re.compile(r"Conv[A-Za-z]*\dd"), "convolution"),
)
# Only where a name says no more.
_BY_TYPE = ((nn.Linear, "linear"), (_ConvNd, "convolution"))
_BY_NAME = (
    (re.compile(r"(ff|ffn|mlp|feed_forward|proj_mlp)(_context|_\d+)?$"), "feed-forward"),
    (re.compile(r"(conv_norm_out|norm\d*(_context)?)$"), "normalisation"),
)
_TEXT = ("encoder_hidden_states", "context")  # arguments of attention


@dataclass(frozen=True)
class Place:
    """Where in a pipeline a call is.

    Args:
        part: the component's name, such as "unet".
        block: dotted name of the block in it, such as "down_blocks.0"; empty outside of all blocks.
        kind: of `KINDS`.
    """

    part: str
    block: str = ""
    kind: str = OTHER


Moved = Callable[[Place], None]


class Whereabouts:
    """Follows the calls of networks through their layers.

    Args:
        networks: by the name of their part.
        moved: is told every new place, also when a layer is left.

    Attributes:
        place: where the calls are now.
    """

    def __init__(self, networks: Mapping[str, nn.Module], moved: Moved | None = None) -> None:
        """Follow nothing yet."""
        self.place = Place("pipeline")
        self._networks = networks
        self._moved = moved or (lambda place: None)
        self._left: list[Place] = []

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Hook every block and every outermost layer, for the length of a block."""
        with ExitStack() as undo:
            for part, network in self._networks.items():
                for module, place in places(network, part):
                    for handle in self._hooks(module, place):
                        undo.callback(handle.remove)
            yield

    def outside(self, part: str) -> None:
        """Say that the pipeline does something of its own, such as a step of its scheduler."""
        self.place = Place(part)
        self._moved(self.place)

    def _hooks(self, module: nn.Module, place: Place) -> Iterator[Any]:
        # Asking for them at every call would take long.
        names = [own.name for own in method_parameters(type(module), "forward")]

        def enters(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._left.append(self.place)
            self.place = _of_call(module, place, names, args, kwargs)
            self._moved(self.place)

        def leaves(module: nn.Module, args: Any, output: Any) -> None:
            self.place = self._left.pop()
            self._moved(self.place)

        yield module.register_forward_pre_hook(enters, with_kwargs=True, prepend=True)
        yield module.register_forward_hook(leaves, always_call=True)


def places(network: nn.Module, part: str) -> Iterator[tuple[nn.Module, Place]]:
    """The network, its blocks, and the outermost layers that have a kind, each with its place."""
    yield network, Place(part)
    for name, child in network.named_children():
        yield from _below(child, name, Place(part))


def _below(module: nn.Module, name: str, around: Place) -> Iterator[tuple[nn.Module, Place]]:
    """A module inside of a block or of none, and what is inside of it."""
    kind = kind_of(module, name.rpartition(".")[2])
    if kind is not None:
        yield module, replace(around, kind=kind)
        return

    if not around.block and _is_block(module, name):
        around = replace(around, block=name)
        yield module, around
    for child_name, child in module.named_children():
        yield from _below(child, f"{name}.{child_name}", around)


def _is_block(module: nn.Module, name: str) -> bool:
    """Whether a module is one of a list of them, or calls itself a block."""
    return name.rpartition(".")[2].isdigit() or name.endswith("block")


def kind_of(module: nn.Module, name: str) -> str | None:
    """The kind of a layer; "attention" where its call must say which, None for what has parts.

    Args:
        module: any.
        name: its own, in the module that holds it.
    """
    of_class = type(module).__name__
    if hasattr(module, "to_q") or hasattr(module, "to_qkv"):
        return _ATTENTION
    for pattern, kind in _BY_CLASS:
        if pattern.search(of_class):
            return kind
    is_list = isinstance(module, nn.ModuleList | nn.ModuleDict)
    for pattern, kind in () if is_list else _BY_NAME:
        if pattern.fullmatch(name):
            return kind
    return next((kind for base, kind in _BY_TYPE if isinstance(module, base)), None)


def _of_call(
    module: nn.Module, place: Place, names: list[str], args: Any, kwargs: Mapping[str, Any]
) -> Place:
    """The place of one call, in which attention is of one kind or the other.

    Args:
        module: that is called.
        place: of the module.
        names: of what its call takes.
        args: of the call.
        kwargs: of the call.
    """
    if place.kind != _ATTENTION:
        return place
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    reads_text = any(given.get(name) is not None for name in _TEXT)
    # Attention over one sequence of image and text makes queries of both, or says what it is.
    is_joint = getattr(module, "add_q_proj", None) is not None
    is_cross = reads_text and not is_joint and getattr(module, "is_cross_attention", True)
    return replace(place, kind=CROSS_ATTENTION if is_cross else SELF_ATTENTION)
