"""Where the time and the work of a step go: seconds, FLOPs and bytes of every place in a network.

Time is taken where the calls pass from one place to the next, so all times add up to the step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sdbench.instruments.clock import Clock, Mark
from sdbench.instruments.cost import is_light
from sdbench.instruments.layers import Place, Whereabouts
from sdbench.models.stored_weights import stored_tensors
from sdbench.variants.trace import Listener, Step

BEFORE, AFTER = "text", "decode"
"""What runs before the loop and after it."""


@dataclass(frozen=True)
class Timed:
    """What a step took, or what runs before or after the loop.

    Attributes:
        name: "text" or "decode"; of a step whether it was guided.
        whole_s: seconds of all of it.
        places: seconds of every place; None where no layer was watched.
        entered: how often every place was entered, which is where watching takes its time.
    """

    name: str | bool
    whole_s: float
    places: dict[Place, float] | None
    entered: Counter[Place] = field(default_factory=Counter)


class ModuleTimer(Listener):
    """Seconds of every place in one pipeline call: two steps watched, two not, and so on.

    Watching every layer takes time, too. Steps without it stand right beside those with it.

    Args:
        networks: whose layers are watched, by the name of their part.
        clock: host time on the CPU, events on CUDA.
        watches_first: whether what is before the loop is watched, and its first two steps.

    Attributes:
        taken: in the order in which it ran.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], clock: Clock, *, watches_first: bool
    ) -> None:
        """Time nothing yet."""
        self.taken: list[Timed] = []
        self._where = Whereabouts(networks, self._note)
        self._clock = clock
        self._watching: ExitStack | None = None
        self._watches_first = watches_first
        self._steps = 0
        self._marks: list[tuple[Mark, Place]] = []
        self._noted: list[tuple[str | bool, bool, list[tuple[Mark, Place]], Mark]] = []

    @contextmanager
    def call(self) -> Iterator[None]:
        """Time one pipeline call; `taken` is filled when the block ends."""
        try:
            self._begin(watched=self._watches_first)
            yield
            self._end(AFTER)
        finally:
            self._watch(False)
        self._clock.finish()
        self.taken = [self._timed(*noted) for noted in self._noted]

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """What ran so far belongs to no step."""
        self._end(BEFORE)
        self._begin(watched=self._watches_first)

    def scheduler_begins(self, step: Step) -> None:
        """The scheduler is at work."""
        self._where.outside("scheduler")

    def scheduler_ends(self, step: Step) -> None:
        """So is the pipeline again."""
        self._where.outside("pipeline")

    def step_ends(self, step: Step) -> None:
        """All that was noted belongs to the step."""
        self._end(step.guided)
        self._steps += 1
        # A guided and an unguided step share their turn.
        self._begin(watched=(self._steps // 2 % 2 == 0) == self._watches_first)

    def _begin(self, *, watched: bool) -> None:
        """Start anew; putting the hooks on and off comes before the clock starts."""
        self._watch(watched)
        self._marks = []
        self._where.outside("pipeline")

    def _end(self, name: str | bool) -> None:
        self._noted.append((name, self._watching is not None, self._marks, self._clock.mark()))

    def _watch(self, on: bool) -> None:
        if on and self._watching is None:
            self._watching = ExitStack()
            self._watching.enter_context(self._where.followed())
        elif not on and self._watching is not None:
            self._watching.close()
            self._watching = None

    def _note(self, place: Place) -> None:
        self._marks.append((self._clock.mark(), place))

    def _timed(
        self, name: str | bool, watched: bool, marks: list[tuple[Mark, Place]], ended: Mark
    ) -> Timed:
        """The seconds between marks, each for the place that was entered at the first of two."""
        ends = [*(mark for mark, _ in marks[1:]), ended]
        places: dict[Place, float] = {}
        for (begun, place), end in zip(marks, ends, strict=True):
            places[place] = places.get(place, 0.0) + self._clock.seconds(begun, end)
        whole_s = self._clock.seconds(marks[0][0], ended)
        if not watched:
            return Timed(name, whole_s, None)
        return Timed(name, whole_s, places, Counter(place for _, place in marks))


def watching(entered: Mapping[Place, float], added_s: float) -> dict[Place, float]:
    """What watching took in every place, in seconds: the same at every entrance.

    Args:
        entered: how often every place was entered.
        added_s: by how much a watched step is longer than one that is not.
    """
    each_s = max(added_s, 0.0) / max(sum(entered.values()), 1)
    return {place: each_s * times for place, times in entered.items()}


@dataclass(frozen=True)
class Work:
    """What places did.

    Attributes:
        flop: 2 per multiply-add, by place.
        moved_bytes: of the tensors that operations read and wrote, as if none found its input in a
            cache. What only looks at a tensor in another way moves nothing.
    """

    flop: Counter[Place] = field(default_factory=Counter)
    moved_bytes: Counter[Place] = field(default_factory=Counter)


class ModuleCounter(Listener):
    """Counts the work of every place, in every step of one pipeline call.

    Args:
        networks: whose layers are told apart, by the name of their part.

    Attributes:
        steps: per step whether it was guided, and its work.
        around: the work before the loop ("text") and after it ("decode").
        unknown: an operation of a network that computes and has no FLOP formula; empty where there
            is none.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        """Count nothing yet."""
        self.steps: list[tuple[bool, Work]] = []
        self.around: dict[str, Work] = {}
        self.unknown = ""
        self._where = Whereabouts(networks)
        self._mode = _ByPlace(self._where, frozenset(networks))

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count one pipeline call, or any block: its work is what comes "after" a loop."""
        with self._where.followed(), self._mode:
            yield
        self.unknown = self._mode.unknown
        self.around[AFTER] = self._mode.taken()

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """What ran so far belongs to no step."""
        self.around[BEFORE] = self._mode.taken()

    def step_ends(self, step: Step) -> None:
        """All that was counted belongs to the step."""
        self.steps.append((step.guided, self._mode.taken()))


class _ByPlace(TorchDispatchMode):
    """Adds the work of every operation to the place in which it runs."""

    def __init__(self, where: Whereabouts, parts: frozenset[str]) -> None:
        super().__init__()
        self.unknown = ""
        self._where = where
        self._parts = parts
        self._work = Work()

    def taken(self) -> Work:
        """What was counted since the last time."""
        work, self._work = self._work, Work()
        return work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(getattr(func, "_overloadpacket", func))
        is_own = isinstance(func, torch._ops.OpOverload) and func.namespace != "prim"
        if formula is None and is_own:
            # What is made of several operations is taken apart, as torch's own counter does it.
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made

        made = func(*args, **kwargs)
        place = self._where.place
        if formula is not None:
            self._work.flop[place] += formula(*args, **kwargs, out_val=made)
        elif not self.unknown and place.part in self._parts and not is_light(func, args, kwargs):
            self.unknown = str(func)
        if not getattr(func, "is_view", False):
            leaves = tree_leaves((args, kwargs, made))
            self._work.moved_bytes[place] += sum(map(_size_bytes, stored_tensors(leaves)))
        return made


def _size_bytes(tensor: Shaped[Tensor, "*shape"]) -> int:
    """Bytes of a tensor's values; what was expanded lies in memory once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())
