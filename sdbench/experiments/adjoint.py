"""A guided loop followed backwards: what a small change at any step does to the last latents.

With z_j the latents before step j and m_j what reaches the scheduler, a scheduler that adds no
noise makes, whatever its order,

    z_j = C[j, 0] z_0 + sum over i < j of C[j, i + 1] m_i,    m_i = f_i(z_i),

with numbers C that it alone decides. So for a vector v of the last latents, of N steps, backwards,

    g_i = d<v, z_N> / dm_i = C[N, i + 1] v + sum over j > i of C[j, i + 1] p_j,    p_j = J_j^T g_j,

where J_j = df_j / dz_j is the network's. Only one step has a graph at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sdbench.models.pipeline import method_parameters
from sdbench.variants.recorded import Recorder, Taken, Unfollowable, tolerance
from sdbench.variants.rows import first_tensor

STEP_ARGUMENTS = ("model_output", "timestep", "sample")


def step_coefficients(
    scheduler: Any, timesteps: Sequence[Any], like: Float[Tensor, "images ..."]
) -> Float64[Tensor, "latents inputs"]:
    """C of a scheduler, read off its answers to unit inputs.

    Args:
        scheduler: ready for its first step; it is used up.
        timesteps: that it gets in turn.
        like: latents of the device that it works on.

    Raises:
        Unfollowable: its step needs more than the prediction, the timestep and the latents.
    """
    parameters = method_parameters(type(scheduler), "step")
    needed = [own.name for own in parameters if own.default is own.empty]
    if not set(needed) <= set(STEP_ARGUMENTS):
        raise Unfollowable(f"the step of {type(scheduler).__name__} needs more than a prediction")

    # Row i holds the answer to input i alone: the first latents, then each prediction.
    size = len(timesteps) + 1
    inputs = torch.eye(size, device=like.device)[..., None, None, None]
    latents = [inputs[0]]
    for own, timestep in zip(inputs[1:], timesteps, strict=True):
        given = dict(zip(STEP_ARGUMENTS, (own, timestep, latents[-1]), strict=True))
        latents.append(first_tensor(scheduler.step(**given, return_dict=False)))
    return torch.stack(latents).flatten(1).double().cpu()


def coefficients(recorder: Recorder) -> Float64[Tensor, "latents inputs"]:
    """C of a recorded loop, held against the latents that it went through.

    Raises:
        Unfollowable: the scheduler draws noise, or is not linear, as with thresholding.
    """
    steps = recorder.steps
    first = steps[0].sample
    # Noise that is drawn here must not change what others draw.
    with torch.random.fork_rng(), torch.no_grad():
        found = step_coefficients(recorder.scheduler, [own.timestep for own in steps], first)

    inputs = torch.stack([first.float(), *(own.guided.float() for own in steps)])
    made = torch.tensordot(found.to(inputs), inputs, dims=1)[1:]
    seen = torch.stack([own.result.detach().float() for own in steps])
    rest = (made - seen).flatten(1).norm(dim=1) / seen.flatten(1).norm(dim=1)
    if not bool((rest <= tolerance(first.dtype)).all()):
        name = type(recorder.scheduler).__name__
        raise Unfollowable(f"{name} draws noise, or its step is not linear in the predictions")
    return found


def places(count: int, every: int) -> list[int]:
    """For each step, the step at which the network is followed back for it.

    Runs of `every` steps, counted from the last one, share the step in their middle.
    """
    ends = [index + (count - 1 - index) % every for index in range(count)]
    return [max(0, end - every // 2) for end in ends]


def adjoints(
    steps: Sequence[Taken],
    found: Float64[Tensor, "latents inputs"],
    vectors: Sequence[Float[Tensor, "images ..."]],
    every: int,
) -> list[list[Float[Tensor, "images ..."]]]:
    """g_i of every step, for each of some vectors v of the last latents.

    Args:
        steps: of the loop.
        found: its C.
        vectors: v.
        every: the network is followed back once for so many steps, at the one in their middle, from
            the g of the last of them. The others have as much of its answer as they have of that g.

    Returns:
        By step, then by vector.
    """
    count = len(steps)
    at = places(count, every)
    given: list[list[Float[Tensor, "images ..."]]] = [[] for _ in steps]
    pulled: list[list[Float[Tensor, "images ..."]]] = [[] for _ in steps]
    for index in reversed(range(count)):
        weights = found[:, index + 1].tolist()
        given[index] = [
            weights[count] * vector
            + sum(weights[later] * pulled[later][place] for later in range(index + 1, count))
            for place, vector in enumerate(vectors)
        ]
        if index == count - 1 or at[index] != at[index + 1]:
            last, answers = index, steps[at[index]].pulled_back(given[index])
        parts = zip(given[index], given[last], answers, strict=True)
        pulled[index] = [_share(one, other) * answer for one, other, answer in parts]
    return given


def _share(
    one: Float[Tensor, "images ..."], other: Float[Tensor, "images ..."]
) -> Float[Tensor, "images ..."]:
    """How much of another vector is in one, for each image."""
    product = (one * other).flatten(1).sum(dim=1)
    square = other.square().flatten(1).sum(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return (product / square).reshape(-1, *[1] * (one.ndim - 1))
