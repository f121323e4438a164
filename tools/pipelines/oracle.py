"""What a pipeline would make under a mask: both halves run, one of them is then overwritten.

On an unguided step the pipeline gets the conditional prediction for the unconditional one, too.
Nothing here knows of sdbench.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from tools.pipelines.halves import SETTLED, Halves, UnclearError, difference, is_float
from tools.pipelines.record import Call, Change, Record, Step, run

Predictions = dict[tuple[int, tuple[str, ...]], list[Any]]
"""The conditional ones of a call, by step and networks."""


def reference(
    pipe: Any,
    arguments: Callable[[], dict[str, Any]],
    halves: Sequence[Halves],
    unguided: Collection[int],
) -> Record:
    """A call in which the pipeline gets the conditional prediction twice on some steps.

    Where a pipeline asks for the unconditional prediction first, the other one is not there yet.
    Then it comes from the call before, and calls go on until it is the same again: each has one
    more step right.

    Args:
        pipe: a guided pipeline.
        arguments: of a call.
        halves: how its networks give the two predictions.
        unguided: indexes of the steps, all of which the pipeline itself guides.

    Raises:
        UnclearError: no end is reached.
    """
    known: Predictions = {}
    for _ in range(len(unguided) + 2):
        found: Predictions = {}
        record = run(pipe, arguments(), _overwriting(halves, unguided, known, found))
        if all(key in known and _equal(known[key], found[key]) for key in found):
            return record
        known = found
    raise UnclearError("the conditional predictions do not settle")


def _overwriting(
    halves: Sequence[Halves],
    unguided: Collection[int],
    known: Predictions,
    found: Predictions,
) -> Change:
    def change(index: int, step: Step, call: Call) -> list[Any] | None:
        mine = [one for one in halves if call.network in one.networks]
        if index not in unguided or not mine:
            return None
        calls = step.of(*mine[0].networks)
        key = (index, mine[0].networks)
        if cond := mine[0].conditional(calls):
            found[key] = cond
        return mine[0].answer(calls, known.get(key))

    return change


def _equal(first: list[Any], second: list[Any]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(difference(a, b) <= SETTLED for a, b in pairs if is_float(a))
