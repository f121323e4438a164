"""How the networks of a pipeline give the conditional and the unconditional prediction.

It is found by experiment: a call in which the conditional half alone sees something else (another
prompt) changes the conditional prediction, and no other. Nothing here knows of sdbench, of names of
networks, or of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tools.pipelines.record import Call, Change, Record, Step, copied

CLEAR = 1e-2
"""Share of the largest change above which a part of an output has changed."""
SETTLED = 1e-6
"""Share of the largest value below which a difference is one of rounding."""


class UnclearError(Exception):
    """The experiment does not tell the halves apart."""


@dataclass(frozen=True)
class Together:
    """A network that gives both predictions in one call.

    Attributes:
        network: its name.
        cond_first: whether the conditional half comes first.
        rows: leaves of the output that hold both halves, each with its first dimension; none where
            the leaves are samples.
        samples: leaves of the output, if each is a sample.
        size: leaves of the output.
    """

    network: str
    cond_first: bool
    rows: tuple[tuple[int, int], ...]
    samples: int
    size: int

    @property
    def networks(self) -> tuple[str, ...]:
        """Those that take part."""
        return (self.network,)

    @property
    def order(self) -> str:
        """For the table."""
        return "conditional first" if self.cond_first else "unconditional first"

    def predicts(self, call: Call) -> bool:
        """Whether a call gives a prediction: it may fill a cache instead."""
        if self.samples:
            return bool(call.leaves)
        leaves = [call.leaves[i] for i, _ in self.rows if i < len(call.leaves)]
        return all(isinstance(leaf, torch.Tensor) for leaf in leaves)

    def is_guided(self, calls: Sequence[Call]) -> bool:
        """Whether a step has both predictions."""
        return any(self._has_both(call) for call in calls)

    def _has_both(self, call: Call) -> bool:
        if len(call.leaves) != self.size:
            return False
        leaves = [call.leaves[index] for index, _ in self.rows] or call.leaves
        if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            return False
        return all(len(call.leaves[index]) == rows for index, rows in self.rows)

    def _cond(self, call: Call) -> dict[int, torch.Tensor]:
        """The conditional prediction of a call that has both, by leaf; of samples by place."""
        if self.samples:
            start = 0 if self.cond_first else self.samples // 2
            return dict(enumerate(call.leaves[start : start + self.samples // 2]))
        return {
            index: call.leaves[index].chunk(2)[0 if self.cond_first else 1]
            for index, _ in self.rows
        }

    def alone(self, calls: Sequence[Call]) -> float:
        """What the conditional prediction of a guided step costs."""
        return sum(call.work for call in calls if self.predicts(call)) / 2

    def conditional(self, calls: Sequence[Call]) -> None:
        """Nothing has to be known before the call."""

    def answer(self, calls: Sequence[Call], known: Any) -> list[Any] | None:
        """What the pipeline gets for the last of a step's calls, if that is unguided."""
        *before, last = calls
        if self._has_both(last):
            cond = self._cond(last)
            if self.samples:
                return [*cond.values()] * 2
            doubled = {index: torch.cat([part, part]) for index, part in cond.items()}
            return [doubled.get(index, leaf) for index, leaf in enumerate(last.leaves)]

        # A third prediction (of skip-layer guidance) says the same as the conditional one.
        earlier = [self._cond(call) for call in before if self._has_both(call)]
        if not earlier or [*map(_shape, earlier[-1].values())] != [*map(_shape, last.leaves)]:
            return None
        return [*earlier[-1].values()]


@dataclass(frozen=True)
class Apart:
    """One or two networks that give each prediction in its own call.

    Attributes:
        networks: their names.
        calls: of a guided step.
        place: of the conditional one among them.
    """

    networks: tuple[str, ...]
    calls: int
    place: int

    @property
    def order(self) -> str:
        """For the table."""
        return "unconditional first" if self.place else "conditional first"

    def predicts(self, call: Call) -> bool:
        """All of its calls do."""
        return True

    def is_guided(self, calls: Sequence[Call]) -> bool:
        """Whether a step has both predictions.

        Raises:
            UnclearError: it has another number of calls.
        """
        if len(calls) not in (1, self.calls):
            raise UnclearError(f"steps of {self.calls} and of {len(calls)} calls")
        return len(calls) == self.calls

    def alone(self, calls: Sequence[Call]) -> float:
        """What the conditional prediction of a guided step costs: it may have tokens of a text."""
        return float(calls[self.place].work) if len(calls) == self.calls else 0.0

    def conditional(self, calls: Sequence[Call]) -> list[Any] | None:
        """The conditional prediction where the last call gave it, and came after the other."""
        return calls[-1].leaves if self.place and len(calls) == self.place + 1 else None

    def answer(self, calls: Sequence[Call], known: list[Any] | None) -> list[Any] | None:
        """What the pipeline gets for the last of a step's calls, if that is unguided.

        Args:
            calls: of the step so far.
            known: the conditional prediction of this step in an earlier run.
        """
        index = len(calls) - 1
        cond = calls[self.place].leaves if index > self.place else known
        if index == self.place or cond is None:
            return None
        return [_fitted(a, like=b) for a, b in zip(cond, calls[-1].leaves, strict=True)]


Halves = Together | Apart


def _shape(leaf: Any) -> Any:
    return getattr(leaf, "shape", None)


def _fitted(cond: Any, like: Any) -> Any:
    """The conditional prediction in the unconditional one's shape: tokens of text come first."""
    if not isinstance(like, torch.Tensor) or cond.shape == like.shape:
        return cond
    for dim, length in enumerate(like.shape):
        cond = cond.narrow(dim, cond.shape[dim] - length, length)
    return cond


def halves_of(plain: Record, another: Callable[[Change | None], Record]) -> list[Halves]:
    """How the networks of a pipeline give the two predictions.

    Args:
        plain: a guided call.
        another: runs one in which the conditional half alone sees something else, and changes what
            the networks answer.

    Raises:
        UnclearError: the steps do not tell.
    """
    # Every step begins as it did in the plain call, so what changes in it is the prompt's doing.
    repeated = plain.repeated
    known = _found(plain, another(_replayed(plain)), repeated)

    # A later loop may know of the prompt only by what an earlier one made.
    first = plain.taken[0].loop
    later = [n for n in repeated if all(s.loop > first for s in plain.taken if s.of(n))]
    if missing := [name for name in later if name not in known]:
        known |= _found(plain, another(None), missing)
    if not known:
        raise UnclearError("no network answers with two predictions of which one changes")
    return list(dict.fromkeys(known.values()))


def _replayed(plain: Record) -> Change:
    """Answer what the networks answered before."""
    looping = plain.looping

    def change(index: int, step: Step, call: Call) -> list[Any] | None:
        if call.network not in looping or index >= len(plain.taken):
            return None
        before, place = plain.taken[index].of(call.network), len(step.of(call.network)) - 1
        return [copied(leaf) for leaf in before[place].leaves] if place < len(before) else None

    return change


def _found(plain: Record, other: Record, names: Sequence[str]) -> dict[str, Halves]:
    """The networks whose halves one changed call tells."""
    known: dict[str, Halves] = {}
    single: dict[str, str] = {}
    for step, changed in zip(plain.taken, other.taken, strict=False):
        for name in names:
            calls, others = step.of(name), changed.of(name)
            if name in known or not calls or len(calls) != len(others):
                continue
            changes = _changes(calls, others)
            if found := _halves(name, calls, changes):
                known[name] = found
            elif len(changes) == 1:
                single.setdefault(name, _whole(changes[0]))
    return known or _two_networks(plain, single)


Changes = dict[int, str]
"""By leaf of an output, what has changed: its "first" or "second" half, "all" or "none" of it."""


def _changes(calls: list[Call], others: list[Call]) -> list[Changes]:
    """What has changed in the calls of a network in one step."""
    pairs = [
        {i: (a, b) for i, (a, b) in enumerate(zip(x.leaves, y.leaves, strict=False)) if is_float(a)}
        for x, y in zip(calls, others, strict=True)
    ]
    largest = max((difference(*pair) for one in pairs for pair in one.values()), default=0.0)
    clear = max(SETTLED, CLEAR * largest)
    return [{i: _change(a, b, clear) for i, (a, b) in one.items()} for one in pairs]


def _change(a: torch.Tensor, b: torch.Tensor, clear: float) -> str:
    if difference(a, b) <= clear:
        return "none"
    if a.shape != b.shape or a.ndim == 0 or len(a) % 2:
        return "all"
    largest = float(a.abs().max())
    parts = zip(a.chunk(2), b.chunk(2), strict=True)
    first, second = (difference(x, y, largest) > clear for x, y in parts)
    if first and second:
        return "all"
    return "first" if first else "second"


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a tensor of real numbers."""
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.numel() > 0


def _halves(name: str, calls: list[Call], changes: list[Changes]) -> Halves | None:
    for call, change in zip(calls, changes, strict=True):
        kinds = {*change.values()} & {"first", "second"}
        if len(kinds) == 1:
            rows = [(i, len(call.leaves[i])) for i, kind in change.items() if kind in kinds]
            return Together(name, "first" in kinds, tuple(rows), 0, len(call.leaves))

    whole = [_whole(change) for change in changes]
    if {"cond", "uncond"} <= {*whole}:
        return Apart((name,), len(calls), whole.index("cond"))
    for call, change in zip(calls, changes, strict=True):
        if (is_first := _of_samples(call, change)) is not None:
            return Together(name, is_first, (), len(call.leaves), len(call.leaves))
    return None


def _whole(change: Changes) -> str:
    """Which prediction a call gives, if it gives one."""
    return "cond" if {*change.values()} - {"none"} else "uncond"


def _of_samples(call: Call, change: Changes) -> bool | None:
    """Whether the first half of a list of samples has changed; None for another output."""
    middle = len(call.leaves) // 2
    shapes = [_shape(leaf) for leaf in call.leaves]
    if not middle or len(change) != len(shapes) or shapes[:middle] != shapes[middle:]:
        return None
    first, second = (
        {*list(change.values())[part]} for part in (slice(middle), slice(middle, None))
    )
    if (first, second) == ({"all"}, {"none"}):
        return True
    return False if (first, second) == ({"none"}, {"all"}) else None


def _two_networks(plain: Record, single: dict[str, str]) -> dict[str, Halves]:
    """Networks that each give one of the predictions, at every step."""
    steps = plain.taken
    always = {n: kind for n, kind in single.items() if all(len(step.of(n)) == 1 for step in steps)}
    width = {n: getattr(steps[0].of(n)[0].leaves[0], "shape", (n,))[-1] for n in always}
    for cond, uncond in ((c, u) for c in always for u in always):
        if (always[cond], always[uncond]) == ("cond", "uncond") and width[cond] == width[uncond]:
            order = [call.network for call in steps[0].of(cond, uncond)]
            return dict.fromkeys(order, Apart(tuple(order), 2, order.index(cond)))
    return {}


def difference(a: torch.Tensor, b: torch.Tensor, largest: float = 0.0) -> float:
    """The largest difference over the largest value."""
    if a.shape != b.shape:
        return 1.0
    largest = largest or max(float(a.abs().max()), 1e-30)
    return float((a - b).abs().max()) / largest
