"""How the rows of a call are read where shapes do not tell it: by trying.

A tensor whose first dimension does not count the rows may be shared by all of them, may have them
as its second dimension, or several entries for each. Half of a call must predict what the whole one
predicts for that half. What does is remembered for the pipeline.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.models.causes import is_machines
from sdbench.variants.evaluation import DenoiserCall, Evaluate
from sdbench.variants.forms import Form
from sdbench.variants.rows import READINGS, Layout, Reading, samples, stacked

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Of the largest value, by dtype: batches of other sizes are rounded otherwise."""
COARSE = 2e-2  # of shorter ones


def read(
    call: DenoiserCall, form: Form, evaluate: Evaluate, *, kind: str
) -> tuple[DenoiserCall, Evaluate]:
    """A call with the right reading of its rows, and what evaluates it.

    The first time, the whole call is evaluated to try readings on; that is not done again.

    Args:
        call: that is for both halves.
        form: what is known of the pipeline, which is added to.
        evaluate: runs the denoiser.
        kind: class of the pipeline.

    Raises:
        ValueError: no half of the arguments predicts what the whole predicts for it.
    """
    if call.layout.is_certain(call.arguments):
        return call, evaluate
    places = tuple(_with(call.layout, reading).kind(call.arguments) for reading in READINGS)
    if places not in form.readings:
        whole = evaluate(*call.arguments, call.layout.rows)
        form.readings[places] = _tried(call, stacked(samples(whole)), evaluate, kind)
        evaluate = _once(call, whole, evaluate)
    return replace(call, layout=_with(call.layout, form.readings[places])), evaluate


def _once(call: DenoiserCall, whole: Any, evaluate: Evaluate) -> Evaluate:
    """Evaluates all but the whole call, whose output is there."""

    def evaluated(args: Any, kwargs: Any, rows: int) -> Any:
        if rows < call.layout.rows:
            return evaluate(args, kwargs, rows)
        call.step.output = whole
        return whole

    return evaluated


def _with(layout: Layout, reading: Reading) -> Layout:
    return replace(layout, reading=reading)


def _tried(
    call: DenoiserCall, whole: Float[Tensor, "rows ..."], evaluate: Evaluate, kind: str
) -> Reading:
    """The first reading that is right."""
    expected = whole[len(whole) // 2 :]
    for reading in READINGS:
        args, kwargs = _with(call.layout, reading).halves(call.arguments)[1]
        try:
            half = stacked(samples(evaluate(args, kwargs, call.layout.rows // 2)))
        except (RuntimeError, ValueError, IndexError) as error:
            if is_machines(error):
                raise
            continue  # shapes that do not fit each other
        if _agree(half, expected):
            return reading
    raise ValueError(
        f"{kind} asks for both predictions in one call whose rows cannot be told apart: half of "
        "its arguments does not give half of its output"
    )


def _agree(one: Float[Tensor, "values ..."], other: Float[Tensor, "values ..."]) -> bool:
    if one.shape != other.shape:
        return False
    allowed = TOLERANCE.get(other.dtype, COARSE) * other.abs().max()
    return bool((one - other).abs().max() <= allowed)
