"""What a pipeline's call does, seen from below: its networks' calls, its steps, and the work.

Nothing here knows of sdbench. A step of the loop is what networks do until a scheduler has taken
its step or steps, so it is told without the pipeline's help. Work is the number of values that the
linear and convolutional layers of a network return, however its rows are laid out.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils import _pytree as pytree  # knows the outputs of diffusers, which register there

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass
class Call:
    """A call of a network.

    Attributes:
        network: its name in the pipeline.
        leaves: of its nested output, as it was evaluated; tensors are copies.
        work: values that its layers returned.
    """

    network: str
    leaves: list[Any]
    work: int


@dataclass
class Step:
    """An iteration of a loop.

    Attributes:
        loop: which one; `set_timesteps` begins another.
        calls: of networks, in order; before the first step those of encoders, too.
        results: what the scheduler returned, of each of its steps.
    """

    loop: int
    calls: list[Call] = field(default_factory=list)
    results: list[torch.Tensor] = field(default_factory=list)

    def of(self, *networks: str) -> list[Call]:
        """The calls of some networks."""
        return [call for call in self.calls if call.network in networks]


Change = Callable[[int, Step, Call], list[Any] | None]
"""From a step's index, the step and its last call to the leaves that the pipeline gets instead."""


@dataclass
class Record:
    """What was seen of one call of a pipeline.

    Attributes:
        steps: that a scheduler has ended, and what was in progress at the end.
        output: of the pipeline; None where it failed.
        change: of the networks' outputs.
    """

    steps: list[Step] = field(default_factory=lambda: [Step(0)])
    output: Any = None
    change: Change | None = None
    _running: str | None = None
    _work: int = 0

    @property
    def taken(self) -> list[Step]:
        """The steps that a scheduler has ended."""
        return [step for step in self.steps if step.results]

    @property
    def loops(self) -> list[int]:
        """How many steps each loop has."""
        order = list(dict.fromkeys(step.loop for step in self.taken))
        return [sum(step.loop == loop for step in self.taken) for loop in order]

    @property
    def repeated(self) -> list[str]:
        """The networks that run in more than one step: no encoder of one text, no decoder."""
        names = [name for _, name in self._by_step()]
        return [name for name in dict.fromkeys(names) if names.count(name) > 1]

    @property
    def looping(self) -> set[str]:
        """Those that run in more than one step of a loop: no encoder of what a loop begins with."""
        pairs = self._by_step()
        return {name for loop, name in pairs if pairs.count((loop, name)) > 1}

    def _by_step(self) -> list[tuple[int, str]]:
        """The networks of every step, each once, with the loop."""
        return [
            (s.loop, name) for s in self.taken for name in dict.fromkeys(c.network for c in s.calls)
        ]

    def _next(self) -> None:
        if self.steps[-1].results:
            self.steps.append(Step(self.steps[-1].loop))

    def ran(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a network; what it does within another one counts as the other's."""
        if self._running is not None:
            return forward(*args, **kwargs)

        self._next()
        self._running, self._work = name, 0
        try:
            output = forward(*args, **kwargs)
        finally:
            self._running = None

        leaves, form = pytree.tree_flatten(output)
        call = Call(name, [copied(leaf) for leaf in leaves], self._work)
        self.steps[-1].calls.append(call)
        changed = self.change and self.change(len(self.steps) - 1, self.steps[-1], call)
        return pytree.tree_unflatten(changed, form) if changed else output

    def worked(self, layer: nn.Module, args: Any, output: Any) -> None:
        """A layer has returned."""
        self._work += output.numel()

    def timed(self) -> None:
        """A scheduler has got its timesteps: a loop begins, unless none of its steps has run."""
        self._next()
        current = self.steps[-1]
        if any(step.loop == current.loop for step in self.taken):
            current.loop += 1

    def stepped(self, output: Any) -> None:
        """A scheduler has taken a step."""
        tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        self.steps[-1].results.append(copied(tensors[0]))


def copied(leaf: Any) -> Any:
    """A leaf that nobody changes later."""
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def parts_of(pipe: Any) -> dict[str, Any]:
    """Networks, schedulers and what else a pipeline is made of, each once."""
    named = {**getattr(pipe, "components", {}), **vars(pipe)}
    first = {id(part): name for name, part in reversed(named.items())}
    return {name: named[name] for name in reversed(first.values())}


def networks_of(pipe: Any) -> dict[str, nn.Module]:
    """The networks that a pipeline holds."""
    return {name: part for name, part in parts_of(pipe).items() if isinstance(part, nn.Module)}


@contextmanager
def recording(pipe: Any, change: Change | None = None) -> Iterator[Record]:
    """Watch the networks and schedulers of a pipeline for the length of one call."""
    record = Record(change=change)
    with ExitStack() as undo:
        layers: set[nn.Module] = set()
        for name, network in networks_of(pipe).items():
            undo.enter_context(_watched(network, name, record))
            layers |= {layer for layer in network.modules() if isinstance(layer, LAYERS)}
        for layer in layers:
            undo.callback(layer.register_forward_hook(record.worked).remove)

        # Pipelines copy their schedulers, so the class is watched.
        for kind in {type(part) for part in parts_of(pipe).values() if _is_scheduler(part)}:
            for method, tell in (("step", record.stepped), ("set_timesteps", record.timed)):
                if hasattr(kind, method):
                    told = _told(getattr(kind, method), tell, with_output=method == "step")
                    undo.enter_context(mock.patch.object(kind, method, told))
        yield record


@contextmanager
def _watched(network: nn.Module, name: str, record: Record) -> Iterator[None]:
    """`forward` of the instance is replaced: some pipelines call it themselves."""
    original = network.forward
    was_own = "forward" in vars(network)

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return record.ran(name, original, args, kwargs)

    network.forward = forward
    try:
        yield
    finally:
        if was_own:
            network.forward = original
        else:
            del network.forward


def _is_scheduler(part: Any) -> bool:
    return not isinstance(part, nn.Module) and callable(getattr(part, "step", None))


def _told(
    original: Callable[..., Any], tell: Callable[..., None], *, with_output: bool
) -> Callable[..., Any]:
    @functools.wraps(original)  # pipelines inspect the signature
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        tell(*[output] * with_output)
        return output

    return method


def seed() -> None:
    """Set the global generators, from which some pipelines draw."""
    random.seed(0)
    torch.manual_seed(0)


def run(pipe: Any, arguments: dict[str, Any], change: Change | None = None) -> Record:
    """One call of a pipeline."""
    seed()
    with recording(pipe, change) as record:
        record.output = pipe(**arguments)
    return record
