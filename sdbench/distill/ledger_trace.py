"""Memory of a method as torch's CPU allocator saw it, put down to parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.distill.halving import Level, ddim_step, joining
from sdbench.distill.ledger_methods import DenoiserInputs, Method, Setup
from sdbench.distill.loss import distillation_loss, guided_prediction
from sdbench.distill.low_rank_layers import layers_off, teacher_on
from sdbench.instruments.memory import AllocatorTrace, parts_held
from sdbench.variants.rows import Layout, first_tensor

STEPS = 2  # the first makes the optimiser's state, in the second all parts are there
SCALE = 7.5  # w of the target; memory does not depend on it
NOISE, BETWEEN, CLEAN = Level(0.0, 1.0), Level(0.6, 0.8), Level(1.0, 0.0)  # nor on these


class Traced(NamedTuple):
    """What a trace of one method says.

    Attributes:
        at_peak: bytes of every part at the peak, which they sum to.
        most: the most bytes of every part at any time.
        step_s: seconds of one step more, without a trace.
    """

    at_peak: dict[str, int]
    most: dict[str, int]
    step_s: float


def traced(setup: Setup, method: Method) -> Traced:
    """Run a method on a fresh denoiser and trace its memory."""
    return _trained(setup, method) if method.trains else _inferred(setup, method)


def _trained(setup: Setup, method: Method) -> Traced:
    """Trace steps of AdamW from before there is a denoiser, then time one more."""
    with AllocatorTrace() as trace:
        denoiser = setup.make()
        trace.mark("weights")
        call = setup.inputs_of(denoiser)
        trace.mark("inputs")

        setup.add_student(denoiser, method)
        teacher = setup.teacher_of(denoiser, method)
        trace.mark("student")

        make_target = partial(target_of, method, teacher, denoiser)
        learnt = [weight for weight in denoiser.parameters() if weight.requires_grad]
        if setup.checkpoint_gradients:
            denoiser.enable_gradient_checkpointing()
        # Fused, because otherwise AdamW takes scratch memory of the size of the weights.
        optimiser = torch.optim.AdamW(learnt, lr=1e-5, fused=True)
        for _ in range(STEPS):
            training_step(denoiser, make_target, call, optimiser, trace.mark)

    started = time.perf_counter()
    training_step(denoiser, make_target, call, optimiser, lambda label: None)
    step_s = time.perf_counter() - started
    return Traced(*_parts(trace, method), step_s)


def training_step(
    denoiser: Any,
    make_target: Callable[[DenoiserInputs], Float[Tensor, "rows ..."]],
    call: DenoiserInputs,
    optimiser: torch.optim.Optimizer,
    mark: Callable[[str], None],
) -> None:
    """Take a step of an optimiser.

    Args:
        denoiser: that learns.
        make_target: what is to be learnt, from a guided step's inputs.
        call: these inputs.
        optimiser: of the weights that are learnt.
        mark: is told what was done: "target", "forward", "backward", "optimiser", "cleared".
    """
    student_call = _cond(call)
    target = make_target(call)
    mark("target")

    loss = distillation_loss(first_tensor(denoiser(**student_call)), target)
    mark("forward")
    loss.backward()
    mark("backward")

    optimiser.step()
    mark("optimiser")
    optimiser.zero_grad(set_to_none=True)
    mark("cleared")


@torch.no_grad()
def target_of(
    method: Method, teacher: Any, denoiser: Any, call: DenoiserInputs
) -> Float[Tensor, "rows ..."]:
    """What is to be learnt: nothing in particular, a guided prediction, or two steps."""
    if teacher is None:
        return torch.zeros_like(first_tensor(_cond(call)))
    if method.halves_steps:
        return _two_steps(denoiser, _cond(call))
    with layers_off(denoiser) if teacher is denoiser else nullcontext():
        uncond, cond = first_tensor(teacher(**call)).chunk(2)
    return guided_prediction(cond, uncond, SCALE)


def _two_steps(denoiser: Any, call: DenoiserInputs) -> Float[Tensor, "rows ..."]:
    """The prediction that stands for two steps of the teacher's layers, from noise alone."""
    name, z = next((name, own) for name, own in call.items() if own is first_tensor(call))
    with teacher_on(denoiser):
        z_mid = ddim_step("v_prediction", first_tensor(denoiser(**call)), z, NOISE, BETWEEN)
        second = first_tensor(denoiser(**call | {name: z_mid}))
    end = ddim_step("v_prediction", second, z_mid, BETWEEN, CLEAN)
    return joining("v_prediction", z, NOISE, end, CLEAN)


def _cond(call: DenoiserInputs) -> DenoiserInputs:
    """The conditional half of a guided step's inputs."""
    half: DenoiserInputs = Layout(len(first_tensor(call))).halves(call)[1]
    return half


def _inferred(setup: Setup, method: Method) -> Traced:
    """Trace one step, then time another."""
    with AllocatorTrace() as trace, torch.no_grad():
        denoiser = setup.make()
        trace.mark("weights")
        call = method.rows_of(setup.inputs_of(denoiser))
        trace.mark("inputs")

        setup.add_student(denoiser, method)
        if method.is_fused:
            denoiser.fuse_lora()
            denoiser.unload_lora()
        trace.mark("student")
        denoiser(**call)
        trace.mark("forward")

    started = time.perf_counter()
    with torch.no_grad():
        denoiser(**call)
    step_s = time.perf_counter() - started
    return Traced(*_parts(trace, method), step_s)


def _parts(trace: AllocatorTrace, method: Method) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of every part, at the peak and at most."""
    kept = method.kept_part
    return parts_held(trace.events, trace.labels, lambda taken, back: _part(taken, back, kept))


def _part(taken: str, given_back: str | None, kept: str) -> str:
    """What an allocation was for, by the intervals in which it was taken and given back."""
    if taken == "target":
        return "teacher's pass"
    if taken == "forward":
        return "activations"
    if taken == "backward":
        return "backward's scratch" if given_back == "backward" else "gradients"

    # What else is given back was held for a moment only.
    if given_back is not None:
        return "scratch"
    if taken in ("weights", "inputs"):
        return taken
    return kept if taken == "student" else "optimiser state"
