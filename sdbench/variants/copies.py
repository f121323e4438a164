"""Copies of a pipeline on the same modules, so that several of its calls can be in progress.

What a call puts on the modules (the seam, a student's weights, an accelerator with its state) must
not act on another call. So each copy has attributes of its own for every module, and they take the
place of the modules' while the copy runs. A switch moves pointers and copies no weight.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from jaxtyping import Shaped
from torch import Tensor, nn

from sdbench.models.copied import OWNER
from sdbench.models.pipeline import Pipeline, networks_of, schedulers_of
from sdbench.variants.holds import Holds, held

CONTAINERS = (dict, OrderedDict, list, set)
"""Attributes that a copy has by itself, since they may be changed in place."""

Attributes = dict[str, Any]


class PipelineCopies:
    """The copies of one pipeline; a context manager, which leaves every module as it was.

    Args:
        pipe: is not called meanwhile.
    """

    def __init__(self, pipe: Pipeline) -> None:
        """Copy nothing yet."""
        self._pipe = pipe
        parts = networks_of(pipe).values()
        # By identity: a module may be part of two.
        self._modules = list({id(part): part for net in parts for part in net.modules()}.values())
        self._own: list[Attributes] = []
        self._trained: list[tuple[nn.Parameter, bool]] = []

    def __enter__(self) -> Self:
        """Keep the modules from other pipelines.

        Raises:
            ValueError: another pipeline is at work on them.
        """
        self._hold = held(self._pipe, "lockstep")
        self._hold.__enter__()
        self._own = [vars(module) for module in self._modules]
        # Whoever freezes a weight and releases it again may do so while another has it frozen.
        weights = {id(weight): weight for module in self._modules for weight in _weights(module)}
        self._trained = [(weight, weight.requires_grad) for weight in weights.values()]
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the pipeline as it was."""
        for weight, is_trained in self._trained:
            weight.requires_grad_(is_trained)
        self._hold.__exit__(None, None, None)

    def copy(self) -> PipelineCopy:
        """A further copy, with schedulers of its own."""
        pipe = object.__new__(type(self._pipe))
        schedulers = schedulers_of(self._pipe)
        for name, part in vars(self._pipe).items():
            is_scheduler = any(part is scheduler for scheduler in schedulers)
            vars(pipe)[name] = copy.deepcopy(part) if is_scheduler else part
        vars(pipe)[OWNER] = self._pipe
        return PipelineCopy(pipe, [_copied(attributes) for attributes in self._own])

    @contextmanager
    def given_to(self, own: PipelineCopy) -> Iterator[None]:
        """Let a copy have the modules for the length of a block, in which it may run."""
        _give(self._modules, own.attributes)
        own.holds.put_back()
        try:
            yield
        finally:
            own.holds.take_off(own.pipe)
            _give(self._modules, self._own)

    def copied_bytes(self, own: PipelineCopy) -> int:
        """Weights that a copy has and its pipeline has not, as `own_copies` makes them."""
        shared = {id(weight) for weight, _ in self._trained}
        return sum(
            weight.nbytes
            for attributes in own.attributes
            for weight in attributes["_parameters"].values()
            if weight is not None and id(weight) not in shared
        )


class PipelineCopy:
    """A copy of a pipeline; it runs where it is given the modules.

    Attributes:
        pipe: the copy itself.
        attributes: of every module, as this copy has them.
        holds: what it is doing with the denoiser.
    """

    def __init__(self, pipe: Pipeline, attributes: list[Attributes]) -> None:
        """Take what was copied."""
        self.pipe = pipe
        self.attributes = attributes
        self.holds = Holds()


def own_copies(modules: Sequence[nn.Module], weights: Sequence[Shaped[Tensor, "*shape"]]) -> None:
    """Put copies of weights in their places, so that a change of them does not act on the others.

    Args:
        modules: whose parts have the weights.
        weights: to be copied.
    """
    copied = {id(weight): _as_parameter(weight.detach().clone()) for weight in weights}
    for module in modules:
        for part in module.modules():
            for name, weight in part._parameters.items():
                if id(weight) in copied:
                    part._parameters[name] = copied[id(weight)]


def _as_parameter(values: Shaped[Tensor, "*shape"]) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _weights(module: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in module._parameters.values() if weight is not None]


def _copied(attributes: Attributes) -> Attributes:
    return {
        name: value.copy() if type(value) in CONTAINERS else value
        for name, value in attributes.items()
    }


def _give(modules: Sequence[nn.Module], attributes: Sequence[Attributes]) -> None:
    """Replace all attributes of modules at once."""
    for module, own in zip(modules, attributes, strict=True):
        object.__setattr__(module, "__dict__", own)
