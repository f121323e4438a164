"""The one path through a denoiser call: which rows are evaluated, what the pipeline gets.

What is wanted is the policy's to say. Nothing here knows of pipelines, schedulers or loops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.models.pipeline import TIMES
from sdbench.variants.policy import Half, Policy
from sdbench.variants.rows import (
    Layout,
    doubled,
    joined,
    map_tensors,
    samples,
    stacked,
    tensors,
)
from sdbench.variants.trace import Step

Evaluate = Callable[[Any, Any, int], Any]
"""Runs the denoiser on arguments (args, kwargs) that have the given number of rows."""
Predictions = dict[Half, Float[Tensor, "rows ..."]]


@dataclass(frozen=True)
class DenoiserCall:
    """What a pipeline asks of its denoiser at once.

    Args:
        step: that it is part of.
        asked: the halves that it is for, in the order of their rows.
        images: rows of a half.
        layout: of the rows in the arguments.
        arguments: args and kwargs, with the rows of all halves that are asked for.
    """

    step: Step
    asked: tuple[Half, ...]
    images: int
    layout: Layout
    arguments: tuple[Any, Any]


def answer(call: DenoiserCall, policy: Policy, evaluate: Evaluate, *, sequential: bool) -> Any:
    """Evaluate the rows that a policy wants, and return what the pipeline gets.

    Args:
        call: of the denoiser.
        policy: decides which rows are wanted, and what stands for the others.
        evaluate: runs the denoiser, and leaves its output in the step.
        sequential: evaluate the halves one after the other.

    Raises:
        ValueError: the denoiser returns several tensors under a policy that is not plain.
    """
    wanted = _wanted(call, policy)
    parts = _parts(call, policy, wanted, sequential=sequential)
    outputs = []
    for part in parts:
        args, kwargs = _rows_of(call, part.rows)
        policy.begin_setting(part.setting)
        outputs.append(evaluate(args, kwargs, len(part.rows)))
    if not policy.plain:
        _require_one_tensor(call, outputs)
    evaluated = _by_half(outputs, parts, wanted)

    # Of two calls in a step the conditional one comes first; the other may need its prediction.
    step = call.step
    cond = evaluated.get("cond") if step.cond is None else step.cond
    made = {half: policy.passed(step.index, half, evaluated, cond) for half in call.asked}
    passed = {half: evaluated[half] if tensor is None else tensor for half, tensor in made.items()}
    _note(step, policy, evaluated, passed)

    if not any(tensor is not None for tensor in made.values()):
        return outputs[0] if len(outputs) == 1 else joined(*outputs, listed=call.layout.listed)
    return _filled(call, policy, passed, cond)


def _filled(
    call: DenoiserCall,
    policy: Policy,
    passed: Predictions,
    cond: Float[Tensor, "rows ..."] | None,
) -> Any:
    """The denoiser's output with other predictions than those that were evaluated."""
    output = call.step.output
    if "uncond" in passed and passed["uncond"] is cond:  # then whatever else it holds is the same
        return doubled(output, listed=call.layout.listed) if "cond" in call.asked else output

    rows = torch.cat([passed[half] for half in call.asked])
    form = policy.form if output is None else output
    if call.layout.listed:
        return _listed_again(form, list(rows))
    return map_tensors(form, lambda _: rows)


def _listed_again(form: Any, rows: list[Float[Tensor, "row ..."]]) -> Any:
    """An output whose samples are a list, with other ones."""
    if isinstance(form, list):
        return rows
    if isinstance(form, dict):
        return type(form)(**{key: _listed_again(value, rows) for key, value in form.items()})
    if isinstance(form, tuple):
        return tuple(_listed_again(value, rows) for value in form)
    return form


def _require_one_tensor(call: DenoiserCall, outputs: list[Any]) -> None:
    if call.layout.listed:
        return
    if any(sum(1 for _ in tensors(out)) != 1 for out in outputs):
        raise ValueError(
            "the denoiser returns more than one tensor, so its rows cannot be told apart"
        )


def _wanted(call: DenoiserCall, policy: Policy) -> dict[Half, list[int]]:
    """The rows of each half that are evaluated."""
    wanted = {half: policy.wanted(call.step.index, half) for half in call.asked}
    return {
        half: list(range(call.images)) if rows is None else rows for half, rows in wanted.items()
    }


class _Part(NamedTuple):
    """An evaluation of some rows.

    Attributes:
        rows: of the call, counted from its first one.
        places: of these rows among all that are wanted.
        setting: as the policy names it.
    """

    rows: list[int]
    places: list[int]
    setting: Any


def _parts(
    call: DenoiserCall, policy: Policy, wanted: dict[Half, list[int]], *, sequential: bool
) -> list[_Part]:
    """The evaluations of what is wanted: by half where they are sequential, and by setting."""
    rows: list[int] = []
    together: dict[Any, list[int]] = {}
    for place, (half, own) in enumerate(wanted.items()):
        settings = policy.settings(call.step.index, half) or [None] * len(own)
        for row, setting in zip(own, settings, strict=True):
            together.setdefault((place if sequential else 0, setting), []).append(len(rows))
            rows.append(place * call.images + row)

    size = len(rows) if sequential or policy.max_rows is None else policy.max_rows
    return [
        _Part(
            [rows[place] for place in places[start : start + size]],
            places[start : start + size],
            setting,
        )
        for (_, setting), places in together.items()
        for start in range(0, len(places), size)
    ]


def _rows_of(call: DenoiserCall, chosen: list[int]) -> Any:
    """The arguments with some rows only; halves are views."""
    rows = len(call.asked) * call.images
    if chosen == list(range(rows)):
        return call.arguments
    first, second = call.layout.halves(call.arguments)
    if chosen == list(range(rows // 2)):
        return first
    if chosen == list(range(rows // 2, rows)):
        return second
    return call.layout.select(call.arguments, chosen)


def _by_half(outputs: list[Any], parts: list[_Part], wanted: dict[Half, list[int]]) -> Predictions:
    """The evaluated predictions; a half without any is left out."""
    sizes = {half: len(rows) for half, rows in wanted.items() if rows}
    predictions = [stacked(samples(out)) for out in outputs]

    # Settings may have put rows into another order.
    places = [place for part in parts for place in part.places]
    if places != sorted(places):
        back = sorted(range(len(places)), key=places.__getitem__)
        predictions = [torch.cat(predictions)[back]]

    # Copied only where the evaluations were cut elsewhere than between the halves.
    if [len(rows) for rows in predictions] != list(sizes.values()):
        if len(predictions) > 1:
            predictions = [torch.cat(predictions)]
        predictions = list(predictions[0].split(list(sizes.values())))
    return dict(zip(sizes, predictions, strict=True))


def _note(step: Step, policy: Policy, evaluated: Predictions, passed: Predictions) -> None:
    """Keep in the step what listeners may ask of it."""
    step.answered += tuple(passed)
    step.cond = passed.get("cond", step.cond)
    if "uncond" in passed:
        step.given = passed["uncond"]
        step.guided = policy.is_guided(step.index)
        is_complete = len(evaluated.get("uncond", ())) == len(passed["uncond"])
        step.uncond = evaluated["uncond"] if is_complete else None


def timestep_of(args: Any, kwargs: Any) -> Any:
    """What a network gets for the timestep."""
    if len(args) > 1:
        return args[1]
    return next((kwargs[name] for name in TIMES if name in kwargs), None)


def with_output(output: Float[Tensor, "images ..."], args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Arguments of a scheduler's step with another model output, which is their first."""
    if args:
        return (output, *args[1:]), kwargs
    return args, kwargs | {"model_output": output}
