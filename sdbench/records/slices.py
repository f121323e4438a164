"""The time of a call from its slices, as a ratio to the baseline's call that took turns with it.

Arrays in, arrays out. Slices are steps of calls in lockstep: those of the same progress ran next to
each other, so their ratio knows no drift of the machine. What a few of them suffer is not the
call's own. Which calls are compared is decided in `call_times.py`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CLIP = 1.5  # robust standard deviations, beyond which a slice counts as one at that distance
FAR = 3.0  # the same of what is one value per call, text encoding and decoding
NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
COMMON = 0.8  # share of the slices that no outlier is among
NORMAL_COMMON = 1.2816  # their quantile of the sizes of normal values
ROUNDS = 4  # of the fit of steps and repeats, which then moves by less than its error

Array = NDArray[np.float64]


class Pairs(NamedTuple):
    """Slices of a call and of the baseline's that ran next to each other.

    Attributes:
        logs: of the call's time over the baseline's: ... pairs.
        steps: of the call, one per pair.
        weights: of the pairs; those of a step sum to 1.
    """

    logs: Array
    steps: NDArray[np.intp]
    weights: Array


def pairs(own_s: ArrayLike, baseline_s: ArrayLike) -> Pairs:
    """Pair the slices that ran at the same progress.

    A slice runs when its call has the least progress: step k of n where that is k / n. Where calls
    have unlike numbers of steps, a slice of the one is paired with those of the other on both of
    its sides. Were it with those after it alone, what dies away slowly would seem its own; were it
    with their mean, a spike would be rarer on that side. Both would move the middle.

    Args:
        own_s: seconds: ... steps.
        baseline_s: seconds: ... baseline's steps.
    """
    own, baseline = (np.log(np.asarray(times, dtype=float)) for times in (own_s, baseline_s))
    counts = own.shape[-1], baseline.shape[-1]
    apart = np.abs(
        np.subtract.outer(np.arange(counts[0]) * counts[1], np.arange(counts[1]) * counts[0])
    )
    near = (2 * apart <= max(counts)) | (apart == apart.min(axis=1, keepdims=True))
    places = np.nonzero(near)
    logs = own[..., places[0]] - baseline[..., places[1]]
    return Pairs(logs, places[0], 1 / near.sum(axis=1)[places[0]])


def location(values: ArrayLike) -> Array:
    """The middle of values, whatever a few of them are: ... values => ...

    The median, and one step from it towards the mean. It takes two thirds as many values as the
    median for the same precision.

    Source: Huber 1964, Annals of Mathematical Statistics 35(1), 73-101; Bickel 1975, Journal of the
        American Statistical Association 70(350), 428-434 (one step suffices).
    """
    values = np.asarray(values, dtype=float)
    middle = np.median(values, axis=-1, keepdims=True)
    scale = NORMAL * np.median(np.abs(values - middle), axis=-1, keepdims=True)
    result: Array = middle[..., 0] + _towards_mean(values - middle, scale, axis=-1)
    return result


def by_kind(paired: Pairs, kinds: ArrayLike) -> Array:
    """Time of a loop where steps of a kind are the same work: ...

    Args:
        paired: slices.
        kinds: of the call's steps.

    Returns:
        The sum over the steps of what one of their kind takes, in steps of the baseline.
    """
    of_pairs = np.asarray(kinds)[paired.steps]
    total = np.zeros(paired.logs.shape[:-1])
    for kind in np.unique(of_pairs):
        same = of_pairs == kind
        total += paired.weights[same].sum() * np.exp(location(paired.logs[..., same]))
    return total


def by_step(paired: Pairs) -> Array:
    """Times of loops where only steps of the same place are the same work: ... calls.

    As of an accelerator, whose steps are other work for the same rows. What a step takes is then
    known from all calls, which do the same. So the times are pseudo-values: what all calls say, and
    how much less they say without one of them. Their spread holds what is unknown of the steps.

    Args:
        paired: slices of two calls or more: ... calls pairs.

    Returns:
        The sum over the steps, in steps of the baseline.

    Source: Tukey 1958, Annals of Mathematical Statistics 29(2), 614 (pseudo-values).
    """
    logs, calls = paired.logs, paired.logs.shape[-2]
    of_all = _log_total(logs, paired.weights)
    without = [_log_total(np.delete(logs, call, axis=-2), paired.weights) for call in range(calls)]
    pseudo = calls * of_all[..., None] - (calls - 1) * np.stack(without, axis=-1)
    result: Array = np.exp(pseudo)
    return result


def held(values: ArrayLike) -> Array:
    """What each call takes around its loop: ... calls => ... calls.

    Text encoding and decoding are one slice each, so only other calls tell which of them suffered:
    none counts as further from their middle than they explain.

    Args:
        values: in units of the loop of the baseline, which tells how fast the machine was.
    """
    values = np.asarray(values, dtype=float)
    middle = np.median(values, axis=-1, keepdims=True)
    reach = FAR * NORMAL * np.median(np.abs(values - middle), axis=-1, keepdims=True)
    return np.clip(values, middle - reach, middle + reach)


def _log_total(logs: Array, weights: Array) -> Array:
    """Logarithm of what the steps of a call take, in the middle of calls: ... calls pairs => ...

    A call's logarithms are those of the steps and one of its own; both are fitted in turn. A few
    calls tell badly which of two values of a step is the outlier, so only what is rare is one.
    """
    step = np.median(logs, axis=-2, keepdims=True)
    own = np.median(logs - step, axis=-1, keepdims=True)
    step = np.median(logs - own, axis=-2, keepdims=True)
    rest = np.abs(logs - step - own)
    scale = np.quantile(rest, COMMON, axis=(-2, -1), keepdims=True) / NORMAL_COMMON

    for _ in range(ROUNDS):
        step = step + _towards_mean(logs - step - own, scale, axis=-2)[..., None, :]
        own = own + _towards_mean(logs - step - own, scale, axis=-1)[..., None]
    total: Array = np.log((weights * np.exp(step)).sum(axis=-1))[..., 0] + own[..., 0].mean(axis=-1)
    return total


def _towards_mean(rest: Array, scale: Array, *, axis: int) -> Array:
    """Newton's step of Huber's estimate, from what is left of values."""
    reach = CLIP * scale
    within = (np.abs(rest) <= reach).sum(axis=axis)
    moved: Array = np.clip(rest, -reach, reach).sum(axis=axis)
    return moved / np.maximum(within, rest.shape[axis] / 2)
