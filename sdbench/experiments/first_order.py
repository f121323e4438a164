"""What a first-order model of the loop says of dropped guidance, from one guided trajectory.

Dropping guidance at the steps S adds d_k = c_k - m_k to what reaches the scheduler at each k of S.
LPIPS is a squared distance of features F, so at the guided image x its gradient is zero, and to
second order it is what the Jacobians make of the sum:

    LPIPS(x_S, x) = || sum over k in S of (dF / dm_k) d_k ||^2 + ...

One backward pass from a random vector r of independent signs gives q_k = <g_k, d_k> for all k at
once, with g_k = (dF / dm_k)^T r (`adjoint.py`), and as E[r r^T] = 1,

    E[ (sum over k in S of q_k)^2 ] = || sum over k in S of (dF / dm_k) d_k ||^2.

So the mean of q_k^2 over images is the sensitivity to step k alone. What it misses: a large change
has another effect than many small ones, as where an image tips over into another. So it ranks steps
and does not rank sets of them: `search.py` goes on with what was truly evaluated.

Source: the adjoint of a recursion; Hutchinson 1990, doi 10.1080/03610919008812866, for the trace by
random signs; Zhang et al. 2018, arXiv 1801.03924, for LPIPS as a squared distance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sdbench.experiments.adjoint import adjoints, coefficients, places
from sdbench.experiments.branching import Branch, Followed, about, of_mask, of_pair
from sdbench.instruments.quality import METRICS, find_metric
from sdbench.models.pipeline import Pipeline, networks_of
from sdbench.study.call import Call, generate
from sdbench.study.generation import Generation, Pair, Pairs
from sdbench.variants.recorded import Recorder, Unfollowable
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Variant

PLACES = 10  # at least, in the loop, at which the network is followed back
PROBES = 3  # vectors r of an image
ROWS_AGAIN = 1  # that a row counts for where it is evaluated again
ROWS_BACK = 2  # that it counts for each time that it is followed back
GUIDED = Variant("followed back", GuidanceSchedule.full)


@dataclass(frozen=True)
class Effects:
    """What dropping guidance does by the first-order model.

    Attributes:
        signed: q_k by metric, (pairs, probes, steps).
        rows: denoiser rows per pair that the guided trajectory took.
        rows_back: likewise that each step took again; to follow a row back counts as two more.
    """

    signed: dict[str, NDArray[np.float64]]
    rows: int
    rows_back: list[int]

    @property
    def cost(self) -> int:
        """Denoiser rows per pair, all together."""
        return self.rows + sum(self.rows_back)

    def without(self, metric: str, dropped: Sequence[int]) -> NDArray[np.float64]:
        """The estimate of a metric for each pair, where guidance is dropped at some steps."""
        together = self.signed[metric][:, :, list(dropped)].sum(axis=2)
        return np.square(together).mean(axis=1)


class Follower:
    """Follows the guided images of a few pairs back, once; takes a `Brancher`'s place in a sweep.

    Args:
        pipe: a guided pipeline.
        generation: its steps, scale and further arguments.
        pairs: (prompt_id, prompt, seed) of every image.
        metrics: names in `METRICS`, each a squared distance of features.
        every: as `adjoints` takes it; by default the network is followed back at 10 places.
        probes: random vectors of an image, whose estimates are averaged.

    Raises:
        ValueError: a metric of another kind.
    """

    def __init__(
        self,
        pipe: Pipeline,
        generation: Generation,
        pairs: Pairs,
        *,
        metrics: Sequence[str],
        every: int | None = None,
        probes: int = PROBES,
    ) -> None:
        """Run nothing yet."""
        require_features(metrics)
        self.pipe = pipe
        self.generation = generation
        self.pairs = pairs
        self.metrics = tuple(metrics)
        self.every = every
        self.probes = probes

    def calls(self, branches: Sequence[Branch]) -> list[tuple[Branch, ...]]:
        """All branches at once: they take no more than one of them does."""
        return [tuple(branches)] if branches else []

    def follow(self, branches: Sequence[Branch], *, growth: bool = False) -> Followed:
        """Estimate the metrics of branches that drop guidance.

        Args:
            branches: any.
            growth: as `Brancher.follow` takes it; no branch is followed, so it gives nothing.

        Returns:
            All branches of the first pair, then those of the next.
        """
        common = about(self.pipe, self.generation, len(branches[0].mask))
        rows = [
            common
            | of_pair(pair)
            | of_mask(branch)
            | self._cost(branch)
            | self._values(row, branch)
            for row, pair in enumerate(self.pairs)
            for branch in branches
        ]
        return Followed(rows, [])

    @cached_property
    def effects(self) -> Effects:
        """Of every step, from one pipeline call and one pass back."""
        recorder = Recorder(self.pipe)
        call = Call(self.generation, GUIDED, self.pairs)
        with _frozen(self.pipe), recorder.watching():
            images = generate(self.pipe, call, listeners=[recorder])
            vectors = self._vectors(images, recorder.final)
            del images  # and the graph of the autoencoder with it

            steps = recorder.steps
            every = self.every or max(1, len(steps) // PLACES)
            back = adjoints(steps, coefficients(recorder), vectors, every)

        changes = [step.change for step in steps]
        products = [
            [
                (vector * change).flatten(1).sum(dim=1)
                for vector, change in zip(own, changes, strict=True)
            ]
            for own in zip(*back, strict=True)
        ]
        signed = torch.stack([torch.stack(own) for own in products]).double().cpu().numpy()
        by_metric = signed.reshape(len(self.metrics), self.probes, *signed.shape[1:])
        rows = [step.rows // len(self.pairs) for step in steps]
        each = ROWS_AGAIN + ROWS_BACK * len(vectors)
        followed = set(places(len(steps), every))
        return Effects(
            {
                name: own.transpose(2, 0, 1)
                for name, own in zip(self.metrics, by_metric, strict=True)
            },
            sum(rows),
            [each * own if index in followed else 0 for index, own in enumerate(rows)],
        )

    def _vectors(
        self, images: Float[Tensor, "n 3 height width"], final: Float[Tensor, "n ..."] | None
    ) -> list[Float[Tensor, "n ..."]]:
        """(dF / dz)^T r for the last latents z: every r of the first metric, then of the next."""
        assert final is not None
        if images.ndim != 4 or not images.requires_grad:
            raise Unfollowable("its images carry no gradient to its last latents")
        vectors = []
        for name in self.metrics:
            kind, _ = find_metric(name)
            assert kind.features is not None
            features = kind.features(images.float())
            for probe in range(self.probes):
                signs = torch.stack([_signs(pair, probe, features.shape[1]) for pair in self.pairs])
                product = (features * signs.to(features)).sum()
                (vector,) = torch.autograd.grad(product, final, retain_graph=True)
                vectors.append(vector.float())
        return vectors

    def _values(self, row: int, branch: Branch) -> dict[str, float]:
        """The estimate of each metric for one image of a branch."""
        dropped = [step for step, is_guided in enumerate(branch.mask) if not is_guided]
        return {name: float(self.effects.without(name, dropped)[row]) for name in self.metrics}

    def _cost(self, branch: Branch) -> dict[str, int]:
        """What a branch takes alone, and its share of what was taken here."""
        effects = self.effects
        taken = effects.rows if branch.is_trunk else 0
        if branch.length == 1 and branch.start is not None:
            taken = effects.rows_back[branch.start]
        return {"nfe": GuidanceSchedule(branch.mask).nfe, "rows": taken}


def require_features(metrics: Sequence[str]) -> None:
    """Refuse metrics that are no squared distance of features.

    Raises:
        ValueError: the first of them, and which there are.
    """
    fitting = [name for name, metric in METRICS.items() if metric.features is not None]
    for name in metrics:
        if find_metric(name)[0].features is None:
            raise ValueError(
                f"'{name}' is no squared distance of features, so it has no estimate; "
                f"there are: {', '.join(fitting)}"
            )


def _signs(pair: Pair, probe: int, count: int) -> Float[Tensor, " count"]:
    """Independent random signs, which depend on the pair and the probe alone."""
    _, prompt, seed = pair
    digest = hashlib.sha256(f"{probe} {seed} {prompt}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
    return 2.0 * torch.randint(2, (count,), generator=generator) - 1


@contextmanager
def _frozen(pipe: Pipeline) -> Iterator[None]:
    """Let no weight have a gradient, so that graphs hold nothing for them."""
    networks = networks_of(pipe).values()
    weights = [own for part in networks for own in part.parameters() if own.requires_grad]
    for own in weights:
        own.requires_grad_(False)
    try:
        yield
    finally:
        for own in weights:
            own.requires_grad_()
