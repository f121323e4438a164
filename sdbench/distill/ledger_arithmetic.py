"""Memory of a method by arithmetic: bytes of weights, and a pass followed without values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from sdbench.distill.ledger_methods import Method, Setup
from sdbench.instruments.footprint import LiveBytes, faked
from sdbench.variants.rows import first_tensor


def predicted(setup: Setup, method: Method) -> tuple[int, dict[str, int]]:
    """Images of a step, and the bytes of every part that arithmetic gives."""
    with torch.device("meta"):
        denoiser = setup.make()
        base_bytes = _bytes(denoiser.parameters())
        # Layers that are fused leave nothing behind.
        if not method.is_fused:
            setup.add_student(denoiser, method)

    # What stays in memory from one step to the next.
    parts = {"weights": base_bytes}
    if method.copies_teacher:
        parts["teacher copy"] = base_bytes
    added = _bytes(denoiser.parameters()) - base_bytes
    if added:
        parts["adapter"] = added
    if method.trains:
        learnt = _bytes(weight for weight in denoiser.parameters() if weight.requires_grad)
        parts["gradients"] = learnt
        parts["optimiser state"] = 2 * learnt  # AdamW's two moments

    images, activations = _followed(setup, method, denoiser)
    if activations is not None:
        parts["activations"] = activations
    return images, parts


def _followed(setup: Setup, method: Method, denoiser: Any) -> tuple[int, int | None]:
    """Images of a step, and the peak of its activations; None where blocks are run again."""
    with FakeTensorMode(), torch.device("cpu"):
        fake, held = faked(denoiser, next(denoiser.parameters()).dtype)
        call = setup.inputs_of(fake)
        images = len(first_tensor(call)) // 2
        if method.trains and setup.checkpoint_gradients:
            return images, None

        call = method.rows_of(call)
        following = LiveBytes([*held, *tree_leaves(call)])
        with torch.set_grad_enabled(method.trains), following:
            fake(**call)
    return images, following.cpu_peak_bytes


def _bytes(weights: Iterable[Shaped[Tensor, "*shape"]]) -> int:
    return sum(weight.nbytes for weight in weights)
