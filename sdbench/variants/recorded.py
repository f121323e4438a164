"""A guided loop as it ran, kept step by step so that each step can be run again with a gradient.

What the denoiser was given and what reached the scheduler is kept, but no graph: that of one step
is made when it is asked for, and is gone when it has answered. What is asked of the steps is
decided in `experiments/`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sdbench.models.pipeline import Pipeline, denoisers_of, method_parameters, schedulers_of
from sdbench.variants.hooks import bare_copy, call_replaced, wrapped
from sdbench.variants.rows import map_tensors, samples, stacked
from sdbench.variants.trace import Listener, Step

CLOSE = 1e-3
"""Share of a vector that its formula may leave unexplained."""
ROUNDINGS = 8  # of the dtype, that it may leave at least


@dataclass(frozen=True)
class Evaluation:
    """A call of the denoiser: what it was given and what it said."""

    network: nn.Module
    arguments: tuple[Any, Any]
    given: Float[Tensor, "rows ..."]
    said: Float[Tensor, "rows ..."]

    def pulled_back(
        self, cotangents: Sequence[Float[Tensor, "rows ..."]]
    ) -> list[Float[Tensor, "rows ..."]]:
        """Each of some vectors g as (d said / d given)^T g; the graph is gone afterwards."""
        leaf = self.given.detach().requires_grad_()
        args, kwargs = map_tensors(
            self.arguments, lambda tensor: leaf if tensor is self.given else tensor
        )
        with torch.enable_grad():
            said = stacked(samples(self.network(*args, **kwargs)))
        last = len(cotangents) - 1
        found: list[Float[Tensor, "rows ..."]] = []
        for index, cotangent in enumerate(cotangents):
            part = said.narrow(1, 0, cotangent.shape[1])  # a learned variance follows it
            found += torch.autograd.grad(part, leaf, cotangent.to(said), retain_graph=index < last)
        return found


@dataclass(frozen=True)
class Taken:
    """A guided step as it ran.

    Attributes:
        evaluations: of the denoiser, one of both halves or one of each.
        cond: the conditional prediction c.
        uncond: the unconditional one u.
        guided: what reached the scheduler, m = u + w (c - u).
        sample: the latents z before the step.
        result: the latents after it.
        timestep: that the scheduler got.
    """

    evaluations: list[Evaluation]
    cond: Float[Tensor, "images ..."]
    uncond: Float[Tensor, "images ..."]
    guided: Float[Tensor, "images ..."]
    sample: Float[Tensor, "images ..."]
    result: Float[Tensor, "images ..."]
    timestep: Any

    @property
    def change(self) -> Float[Tensor, "images ..."]:
        """What dropping guidance here adds to what reaches the scheduler: c - m."""
        return self.cond.float() - self.guided.float()

    @property
    def rows(self) -> int:
        """Denoiser rows of the step."""
        return sum(len(own.said) for own in self.evaluations)

    @functools.cached_property
    def scale(self) -> float:
        """The w of m = u + w (c - u).

        Raises:
            ValueError: m is something else, as with guidance_rescale.
        """
        added = self.guided.float() - self.uncond.float()
        return factor(
            added,
            self.cond.float() - self.uncond.float(),
            size=self.guided,
            otherwise="its guided prediction is not u + w (c - u)",
        )

    @functools.cached_property
    def input_scale(self) -> float:
        """By how much the pipeline scales the latents for the denoiser.

        Raises:
            ValueError: the denoiser gets something else.
        """
        given = self.evaluations[0].given[: len(self.sample)]
        if given.shape != self.sample.shape:
            raise Unfollowable("its denoiser gets more than the latents, or other ones")
        return factor(
            given.float(),
            self.sample.float(),
            size=given,
            otherwise="its denoiser does not get the latents, scaled",
        )

    def pulled_back(
        self, cotangents: Sequence[Float[Tensor, "images ..."]]
    ) -> list[Float[Tensor, "images ..."]]:
        """Each of some vectors g as (dm / dz)^T g: the step runs again, with a graph of its own."""
        # The map is linear: vectors of length one suit half precision, too.
        sizes = [norms(cotangent) for cotangent in cotangents]
        units = [own / size for own, size in zip(cotangents, sizes, strict=True)]
        total = [torch.zeros_like(own) for own in cotangents]
        for own, shares in self._shares():
            spread = [torch.cat([share * unit for share in shares]) for unit in units]
            for index, gradient in enumerate(own.pulled_back(spread)):
                rows = gradient.float().unflatten(0, (len(shares), -1))
                total[index] += self.input_scale * rows.sum(dim=0)
        return [size * own for size, own in zip(sizes, total, strict=True)]

    def _shares(self) -> Iterator[tuple[Evaluation, list[float]]]:
        """How much of m each half of an evaluation makes. A half is known by what it said."""
        left = [(self.cond, self.scale), (self.uncond, 1 - self.scale)]
        for own in self.evaluations:
            shares = []
            for rows in own.said.split(len(self.sample)):
                piece = rows.narrow(1, 0, self.sample.shape[1])
                fits = [torch.equal(piece, prediction) for prediction, _ in left]
                if not any(fits):
                    raise Unfollowable("its denoiser is asked for more than two predictions")
                shares.append(left.pop(fits.index(True))[1])
            yield own, shares


class Unfollowable(ValueError):
    """A loop that cannot be followed backwards, and why."""

    def __init__(self, reason: str) -> None:
        """Say what is amiss."""
        super().__init__(f"the pipeline cannot be followed backwards: {reason}")


class Recorder(Listener):
    """Keeps the steps of a pipeline's loop, and a graph of what is made of its last latents.

    Args:
        pipe: a guided pipeline of one loop.

    Attributes:
        steps: as they ran.
        scheduler: a copy of the pipeline's, ready for the first step.
        final: the latents after the last step, of which the pipeline makes its images with a graph.

    Raises:
        Unfollowable: the pipeline has several loops.
    """

    def __init__(self, pipe: Pipeline) -> None:
        """Run nothing yet."""
        self.denoisers = denoisers_of(pipe)
        if len(schedulers_of(pipe)) > 1:
            raise Unfollowable("it has several loops")
        (self._scheduler,) = schedulers_of(pipe)
        self.steps: list[Taken] = []
        self.scheduler: Any = None
        self.final: Float[Tensor, "images ..."] | None = None
        self._iterations = 0
        self._evaluations: list[Evaluation] = []
        self._guided: Any = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what the denoiser evaluates and the scheduler gets; to be entered before the seam."""
        grad_was_on = torch.is_grad_enabled()
        with ExitStack() as undo:
            for denoiser in self.denoisers:
                keep = functools.partial(self._keeping_evaluations, denoiser)
                undo.enter_context(call_replaced(denoiser, keep))
            undo.enter_context(wrapped(self._scheduler, "step", self._keeping_guided))
            undo.callback(torch.set_grad_enabled, grad_was_on)
            yield

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """Keep the scheduler as it is before the first step.

        Raises:
            Unfollowable: a second loop begins.
        """
        if self.scheduler is not None:
            raise Unfollowable("it has several loops")
        self._iterations = iterations
        self.scheduler = bare_copy(self._scheduler, {})

    def scheduler_ends(self, step: Step) -> None:
        """Keep the step, and begin a graph after the last one.

        Raises:
            Unfollowable: the pipeline itself leaves the step unguided, or its latents are of
                another shape than its predictions.
        """
        if step.cond is None or step.uncond is None:
            raise Unfollowable(f"it leaves step {step.index} unguided itself")
        assert step.sample is not None
        assert step.result is not None
        parts = [step.cond, step.uncond, self._guided]
        if any(own.shape[2:] != step.sample.shape[2:] for own in parts):
            raise Unfollowable("its latents and its predictions differ in shape")
        channels = step.sample.shape[1]
        cond, uncond, guided = (own.narrow(1, 0, channels) for own in parts)
        taken = Taken(
            self._evaluations, cond, uncond, guided, step.sample, step.result, step.timestep
        )
        self.steps.append(taken)
        self._evaluations = []

        # The pipeline goes on without a graph until here: each step is run again by itself.
        if len(self.steps) == self._iterations:
            self.final = step.result.requires_grad_()
            torch.set_grad_enabled(True)

    def _keeping_evaluations(
        self, network: nn.Module, original: Callable[..., Any]
    ) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            given = samples((args, kwargs))
            if not isinstance(given, Tensor):
                raise Unfollowable("its denoiser gets its latents as a list")
            said = stacked(samples(out))
            self._evaluations.append(Evaluation(network, (args, kwargs), given, said))
            return out

        return call

    def _keeping_guided(self, original: Callable[..., Any]) -> Callable[..., Any]:
        names = [own.name for own in method_parameters(type(self._scheduler), "step")]

        @functools.wraps(original)
        def step(*args: Any, **kwargs: Any) -> Any:
            self._guided = (dict(zip(names, args, strict=False)) | kwargs)["model_output"]
            return original(*args, **kwargs)

        return step


def factor(
    target: Float[Tensor, "images ..."],
    along: Float[Tensor, "images ..."],
    *,
    size: Float[Tensor, "images ..."],
    otherwise: str,
) -> float:
    """The number by which one vector is another one.

    Args:
        target: the vector.
        along: the other one. Where it is zero, the number is 1.
        size: what the target was computed with, by whose length and dtype the rest is judged.
        otherwise: the reason where there is no such number.

    Raises:
        Unfollowable: there is none.
    """
    square = along.square().sum()
    if square == 0:
        return 1.0
    number = (target * along).sum() / square
    rest = (target - number * along).norm() / size.float().norm()
    if not rest <= tolerance(size.dtype):
        raise Unfollowable(otherwise)
    return float(number)


def tolerance(dtype: torch.dtype) -> float:
    """Share of a vector that a formula may leave unexplained in a dtype."""
    return max(CLOSE, ROUNDINGS * torch.finfo(dtype).eps)


def norms(vectors: Float[Tensor, "images ..."]) -> Float[Tensor, "images ..."]:
    """The length of each image's vector, above zero, with dimensions of one for the others."""
    lengths = vectors.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return lengths.reshape(-1, *[1] * (vectors.ndim - 1))
