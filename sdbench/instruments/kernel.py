"""The squared kernel distance between sets of features, without bias, with intervals that hold.

KID where the features are InceptionV3's. Every row of the reference counts, not a subset. Images of
one prompt are not independent, so a prompt counts as its images' mean: no product of two images of
one prompt enters. Which sets are compared is in `experiments/distances.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.special import stdtrit
from torch import Tensor

LEVEL = 0.95
FEWEST_PROMPTS = 64  # below, no interval: whether there is one must not depend on the draw
RESAMPLES = 1000
AT_ONCE = 1024  # rows of the reference whose kernel with all others is in memory

Vector = Float[Tensor, " n"]
Square = Float[Tensor, "n n"]
Matrix = Float[Tensor, "n m"]


class Estimate(NamedTuple):
    """A distance, or a difference of two, and its 95 % interval; NaN where there is none."""

    estimate: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Reference:
    """What distances take from the reference alone: computed once, for all variants.

    Attributes:
        features: float64.
        means: of every row's kernel with the other rows.
        multipliers: random signs and sizes of every row, one set per resample.
        terms: the reference's own second-order term in every resample.
        square: mean of the squared kernel, its row means taken off.
    """

    features: Float[Tensor, "m width"]
    means: Float[Tensor, " m"]
    multipliers: Float[Tensor, "resamples m"]
    terms: Float[Tensor, " resamples"]
    square: float

    @classmethod
    def of(cls, features: Float[Tensor, "m width"], *, seed: int = 0) -> Reference:
        """Those of a set of features.

        Args:
            features: at least two rows.
            seed: of the resamples.
        """
        features = features.double()
        count = len(features)
        starts = range(0, count, AT_ONCE)
        generator = torch.Generator().manual_seed(seed)
        multipliers = torch.randn(RESAMPLES, count, generator=generator, dtype=torch.float64)

        # In two passes, as a row's kernel is centred by the means of all rows.
        sums = torch.cat([_rows(features, start).sum(1) for start in starts])
        means = sums / (count - 1)
        terms = torch.zeros(RESAMPLES, dtype=torch.float64)
        square = 0.0
        for start in starts:
            centred = _rows(features, start)
            rows = torch.arange(len(centred))
            centred += means.mean() - means[start : start + AT_ONCE, None] - means
            centred[rows, start + rows] = 0
            square += float(centred.square().sum())
            terms += ((multipliers @ centred.T) * multipliers[:, start : start + AT_ONCE]).sum(1)
        pairs = count * (count - 1)
        return cls(features, means, multipliers, terms / pairs, square / pairs)


def kernel_distance(
    features: Float[Tensor, "n width"], prompts: Int[Tensor, " n"], reference: Reference
) -> Estimate:
    """The squared distance of a set of images to the reference.

    Near 0 the estimate is no mean of independent parts, and its error is lopsided. So the interval
    comes from resamples of the first-order and the second-order terms by random multipliers. The
    first-order terms are noise where the sets are alike: their size is reduced by what the
    second-order terms make of them (a jackknife counts these twice).

    Args:
        features: of the images.
        prompts: the number of every image's prompt, from 0.
        reference: of the other images.

    Returns:
        The estimate; its ends are NaN below 64 prompts.

    Source: Bińkowski et al. 2018, arXiv 1801.01401; Efron and Stein 1981 (what a jackknife counts
        twice); Chwialkowski et al. 2014, arXiv 1408.5404 (resamples by multipliers).
    """
    images = features.double()
    own = _by_prompt(_by_prompt(_kernel(images, images), prompts).T, prompts)
    cross = _by_prompt(_kernel(images, reference.features), prompts)
    count, others = cross.shape
    row_means = _other_means(own)
    estimate = float(row_means.mean() + reference.means.mean() - 2 * cross.mean())
    if count < FEWEST_PROMPTS:
        return Estimate(estimate, float("nan"), float("nan"))

    # The second-order terms, and what of the squared error is theirs.
    centred_own = _centred(own, row_means)
    centred_cross = cross - cross.mean(1, keepdim=True) - cross.mean(0) + cross.mean()
    second_order = (
        2 * float(centred_own.square().sum()) / (count * (count - 1)) ** 2
        + 2 * reference.square / (others * (others - 1))
        + 4 * float(centred_cross.square().mean()) / (count * others)
    )

    # The first-order terms: how much nearer to its own set than to the other a row lies.
    here = _deviations(row_means - cross.mean(1)) * 2 / count
    there = _deviations(reference.means - cross.mean(0)) * 2 / others
    jackknife = float(here.var() * count + there.var() * others)
    share = max(0.0, 1 - 2 * second_order / jackknife) ** 0.5

    generator = torch.Generator().manual_seed(1)
    here_by = torch.randn(RESAMPLES, count, generator=generator, dtype=torch.float64)
    there_by = reference.multipliers
    shifts = (
        share * (here_by @ here + there_by @ there)
        + ((here_by @ centred_own) * here_by).sum(1) / (count * (count - 1))
        - 2 * ((here_by @ centred_cross) * there_by).sum(1) / (count * others)
        + reference.terms
    )
    ends = torch.tensor([(1 + LEVEL) / 2, (1 - LEVEL) / 2], dtype=torch.float64)
    lo, hi = (estimate - torch.quantile(shifts, ends)).tolist()
    return Estimate(estimate, lo, hi)


def kernel_difference(
    features: Float[Tensor, "n width"],
    baseline: Float[Tensor, "n width"],
    prompts: Int[Tensor, " n"],
    reference: Reference,
) -> Estimate:
    """How much farther a set of images is from the reference than the baseline's, prompt by prompt.

    The difference is the mean over prompts of how much nearer the baseline's images of a prompt lie
    to the reference than the variant's, seen from both sets together. That mean has Student's t
    interval. Where the two sets truly differ more errs than that: what either set and the reference
    say of the other, as far as it exceeds its own noise, is added.

    Args:
        features: of the variant's images.
        baseline: of the baseline's images of the same prompts and seeds.
        prompts: the number of every pair's prompt, from 0.
        reference: of the other images.

    Returns:
        The estimate; its ends are NaN below 64 prompts.
    """
    first, second = features.double(), baseline.double()
    own, base, between = (
        _by_prompt(_by_prompt(_kernel(*sets), prompts).T, prompts).T
        for sets in ((first, first), (second, second), (first, second))
    )
    cross = _by_prompt(
        _kernel(first, reference.features) - _kernel(second, reference.features), prompts
    )
    count, others = cross.shape

    # Twice the pooled sets' witness at the variant's image, less the same at the baseline's.
    straight = _other_means(own) - _other_means(base)
    swapped = _other_means(between) - _other_means(between.T)
    differences = straight + swapped - 2 * cross.mean(1)
    estimate = float(differences.mean())
    if count < FEWEST_PROMPTS:
        return Estimate(estimate, float("nan"), float("nan"))

    # Twice the influence of a prompt also holds what its images say of the two sets' difference.
    paired = float(differences.var()) / count
    influence = float((2 * straight - 2 * cross.mean(1)).var()) / count
    apart = _centred_rows(own - base - between + between.T)
    noise = float(apart.square().mean()) / (count * (count - 1))

    # So does a row of the reference.
    of_reference = 4 * float(cross.mean(0).var()) / others
    centred = cross - cross.mean(1, keepdim=True) - cross.mean(0) + cross.mean()
    noise_of_reference = 4 * float(centred.square().mean()) / (count * others)

    squared = paired + max(0.0, influence - paired - noise)
    squared += max(0.0, of_reference - noise_of_reference)
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * squared**0.5
    return Estimate(estimate, estimate - half, estimate + half)


def _kernel(a: Float[Tensor, "n width"], b: Float[Tensor, "m width"]) -> Matrix:
    """KID's polynomial kernel."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def _rows(features: Float[Tensor, "m width"], start: int) -> Matrix:
    """The kernel of some rows with all; 0 of a row with itself."""
    kernel = _kernel(features[start : start + AT_ONCE], features)
    rows = torch.arange(len(kernel))
    kernel[rows, start + rows] = 0
    return kernel


def _by_prompt(matrix: Matrix, prompts: Int[Tensor, " n"]) -> Matrix:
    """Rows averaged within each prompt."""
    sums = torch.zeros(int(prompts.max()) + 1, matrix.shape[1], dtype=matrix.dtype)
    return sums.index_add(0, prompts, matrix) / prompts.bincount()[:, None]


def _other_means(square: Square) -> Vector:
    """The mean of every row without its diagonal."""
    return (square.sum(1) - square.diagonal()) / (len(square) - 1)


def _centred(square: Square, means: Vector) -> Square:
    """A symmetric matrix less its row and column means, the diagonal 0."""
    centred = square - means[:, None] - means + means.mean()
    return centred.fill_diagonal_(0)


def _centred_rows(square: Square) -> Square:
    """A matrix less the means of its rows and columns, the diagonal 0."""
    rows, columns = _other_means(square), _other_means(square.T)
    centred = square - rows[:, None] - columns + rows.mean()
    return centred.fill_diagonal_(0)


def _deviations(values: Vector) -> Vector:
    return values - values.mean()
