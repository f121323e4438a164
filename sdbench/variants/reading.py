"""How the rows of a call are read where shapes do not tell it: by trying.

A tensor whose first dimension does not count the rows may be shared by all of them, may have them
as its second dimension, or several entries for each. Half of a call must predict what the whole one
predicts for that half. What does is remembered for the pipeline.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.variants.evaluation import DenoiserCall, Evaluate
from sdbench.variants.forms import Form
from sdbench.variants.rows import READINGS, Layout, Reading, samples, stacked

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Of the largest value, by dtype: batches of other sizes are rounded otherwise."""
COARSE = 2e-2  # of shorter ones


def read(call: DenoiserCall, form: Form, evaluate: Evaluate, *, kind: str) -> DenoiserCall:
    """A call with the right reading of its rows.

    Args:
        call: that is for both halves.
        form: what is known of the pipeline, which is added to.
        evaluate: runs the denoiser.
        kind: class of the pipeline.

    Raises:
        ValueError: no half of the arguments predicts what the whole predicts for it.
    """
    if call.layout.is_certain(call.arguments):
        return call
    places = tuple(_with(call.layout, reading).kind(call.arguments) for reading in READINGS)
    if places not in form.readings:
        form.readings[places] = _tried(call, evaluate, kind)
    return replace(call, layout=replace(call.layout, reading=form.readings[places]))


def _with(layout: Layout, reading: Reading) -> Layout:
    return replace(layout, reading=reading)


def _tried(call: DenoiserCall, evaluate: Evaluate, kind: str) -> Reading:
    """The first reading that is right."""
    args, kwargs = call.arguments
    whole = stacked(samples(evaluate(args, kwargs, call.layout.rows)))
    expected = whole[len(whole) // 2 :]
    for reading in READINGS:
        args, kwargs = _with(call.layout, reading).halves(call.arguments)[1]
        try:
            half = stacked(samples(evaluate(args, kwargs, call.layout.rows // 2)))
        except (RuntimeError, ValueError, IndexError):  # shapes that do not fit each other
            continue
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
