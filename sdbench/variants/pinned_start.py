"""Loops of other lengths that begin where the baseline's loop begins.

A scheduler's own list of N steps may begin anywhere: under `leading` spacing 50 steps begin at
timestep 981 and 48 at 941. Then a loop of fewer steps differs from the baseline's in where it
starts, and not only in how many steps it has. Here the list is stretched until its first noise
level is the baseline's; its last one stays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from sdbench.models.pipeline import Pipeline, method_parameters
from sdbench.variants.hooks import replaced, wrapped
from sdbench.variants.trace import Unsupported

LISTS = frozenset({"timesteps", "sigmas", "_timesteps", "plms_timesteps"})
"""What a scheduler may list of its steps; the last two only set up PNDM's timesteps."""
KARRAS_RHO = 7.0

Listed = NDArray[np.float64]


@contextmanager
def pinned_start(pipe: Pipeline, *, num_steps: int) -> Iterator[None]:
    """Let loops of any length begin at the noise level where one of `num_steps` steps begins.

    A loop of just that length, and one whose steps are listed by the caller, stays as it is.

    Args:
        pipe: a diffusers pipeline.
        num_steps: of the baseline, as it is asked of the pipeline.

    Raises:
        Unsupported: from `set_timesteps`, where the scheduler's list cannot be stretched.
    """
    scheduler = pipe.scheduler
    moves = _Moves(scheduler)

    def pinned(original: Callable[..., Any]) -> Callable[..., Any]:
        names = [own.name for own in method_parameters(type(scheduler), "set_timesteps")]

        @functools.wraps(original)
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            moves.timesteps = None
            given = dict(zip(names, args, strict=False)) | kwargs
            asked = given.get("num_inference_steps")
            is_listed = any(given.get(name) is not None for name in ("timesteps", "sigmas"))
            if asked is None or asked == num_steps or is_listed:
                return original(*args, **kwargs)

            original(**given | {"num_inference_steps": num_steps})
            baseline = _lists(scheduler)
            out = original(*args, **kwargs)
            _stretch(scheduler, baseline)
            if not _counts_steps(scheduler):
                moves.timesteps = scheduler.timesteps.tolist()
            return out

        return set_timesteps

    with (
        wrapped(scheduler, "set_timesteps", pinned),
        wrapped(scheduler, "step", moves.along),
    ):
        yield


def _counts_steps(scheduler: Any) -> bool:
    """Whether a step ends where the next one in the list begins.

    Schedulers that do not count move by `num_train_timesteps // num_inference_steps` instead; one
    without numbered timesteps (Wuerstchen's) looks the next one up.
    """
    return hasattr(scheduler, "step_index") or "num_train_timesteps" not in scheduler.config


class _Moves:
    """Moves a scheduler along its list where it would move by equal, rounded steps.

    Args:
        scheduler: of the pipeline.

    Attributes:
        timesteps: of its list; None where every step stays as it is.
    """

    def __init__(self, scheduler: Any) -> None:
        """Leave every step as it is."""
        self._scheduler = scheduler
        self.timesteps: list[int] | None = None

    def along(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `scheduler.step`."""
        names = [own.name for own in method_parameters(type(self._scheduler), "step")]

        @functools.wraps(original)
        def step(*args: Any, **kwargs: Any) -> Any:
            if self.timesteps is None:
                return original(*args, **kwargs)
            timestep = (dict(zip(names, args, strict=False)) | kwargs)["timestep"]
            trained = self._scheduler.config.num_train_timesteps
            # A gap g is `trained // n` for n = trained / g: as a fraction it is exact and whole.
            steps = Fraction(trained, self._gap(int(timestep)))
            with replaced(self._scheduler, "num_inference_steps", steps):
                return original(*args, **kwargs)

        return step

    def _gap(self, timestep: int) -> int:
        """From a listed timestep to the next one; after the last, to below 0, which is clean."""
        assert self.timesteps is not None
        place = self.timesteps.index(timestep)
        # PNDM's second call repeats its first step, from the same place to the same place.
        if getattr(self._scheduler, "counter", None) == 1:
            place -= 1
            timestep = self.timesteps[place]
        lower = [listed for listed in self.timesteps[place:] if listed < timestep]
        return timestep - max(lower, default=-1)


def _lists(scheduler: Any) -> dict[str, Listed]:
    """Every vector that a scheduler holds, by its attribute."""
    vectors = {
        name: value.cpu().numpy() if isinstance(value, Tensor) else value
        for name, value in vars(scheduler).items()
        if isinstance(value, Tensor | np.ndarray) and value.ndim == 1
    }
    return {name: vector.astype(np.float64) for name, vector in vectors.items()}


def _stretch(scheduler: Any, baseline: dict[str, Listed]) -> None:
    """Let a scheduler's list begin where the baseline's does, and end where it ends itself.

    Raises:
        Unsupported: the scheduler keeps further lists of its steps, which would not fit any more;
            nothing says how noisy a timestep is; or so many steps do not fit.
    """
    own = _lists(scheduler)
    timesteps, first = own["timesteps"], baseline["timesteps"][0]
    name = type(scheduler).__name__
    if "alphas_cumprod" in own and timesteps[0] < timesteps[-1]:
        raise Unsupported(f"{name} goes from data to noise, so its loop begins without noise")
    if timesteps[0] == first:
        return
    refusal = f"{name} begins {len(timesteps)} steps at timestep {timesteps[0]:g}, not at {first:g}"

    further = [key for key in own.keys() - LISTS if not _is_same(own[key], baseline.get(key))]
    if further:
        raise Unsupported(f"{refusal}, and keeps a list of them besides ({min(further)})")
    if "alphas_cumprod" not in own:
        raise Unsupported(f"{refusal}, and does not say how noisy a timestep is")

    with np.errstate(divide="ignore"):  # infinite where the noise ends without a signal
        trained = np.sqrt((1 - own["alphas_cumprod"]) / own["alphas_cumprod"])
    if _counts_steps(scheduler) and "sigmas" in own:
        if not _tell_the_same(own, trained):
            raise Unsupported(f"{refusal}, and its timesteps are not those of its sigmas")
        moved, sigmas = _moved_sigmas(scheduler.config, own, baseline, trained)
        scheduler.sigmas = _like(scheduler.sigmas, sigmas)
    else:
        moved = _moved(timesteps, first)
    # As many different ones as before, or some steps would lead nowhere.
    if len(set(moved)) < len(set(timesteps)):
        raise Unsupported(f"{refusal}, from where so many do not fit")
    scheduler.timesteps = _like(scheduler.timesteps, moved)


def _tell_the_same(own: dict[str, Listed], trained: Listed) -> bool:
    """Whether a scheduler's timesteps are where in training its sigmas are.

    They are not where a logarithm of sigma stands for the timestep, nor where every second step
    begins between two listed sigmas.
    """
    levels = own["sigmas"][: len(own["timesteps"])]
    places = np.interp(np.log(levels), np.log(trained), np.arange(len(trained)))
    return bool((np.abs(places - own["timesteps"]) <= 1).all())


def _moved_sigmas(
    config: Any, own: dict[str, Listed], baseline: dict[str, Listed], trained: Listed
) -> tuple[Listed, Listed]:
    """Timesteps and sigmas that begin where the baseline's do.

    Args:
        config: of the scheduler.
        own: its vectors for the steps that are asked for.
        baseline: the same for the baseline's.
        trained: sigma of every timestep of training.
    """
    timesteps, sigmas = own["timesteps"], own["sigmas"]
    levels = sigmas[: len(timesteps)]
    every = np.arange(len(trained), dtype=np.float64)

    # Most have the sigmas of evenly spaced timesteps.
    rule = _rule(config)
    if rule is None:
        moved = _moved(timesteps, baseline["timesteps"][0])
        new = np.interp(moved, every, trained)
    else:
        there, back = rule
        new = back(_moved(there(levels), there(baseline["sigmas"][:1])[0], whole=False))
        moved = np.interp(np.log(new), np.log(trained), every)
        moved = moved.round() if _is_whole(timesteps) else moved
    return moved, np.concatenate([new, sigmas[len(timesteps) :]])


def _rule(config: Any) -> tuple[Callable[[Listed], Listed], Callable[[Listed], Listed]] | None:
    """To where a scheduler's sigmas are spaced by a rule between their ends, and back.

    None where it takes the sigmas of its timesteps.
    """
    if config.get("use_karras_sigmas"):
        return lambda sigma: sigma ** (1 / KARRAS_RHO), lambda root: root**KARRAS_RHO
    if config.get("use_beta_sigmas"):
        return lambda sigma: sigma, lambda sigma: sigma
    if config.get("use_exponential_sigmas") or config.get("use_lu_lambdas"):
        return np.log, np.exp
    return None


def _moved(listed: Listed, first: float, *, whole: bool | None = None) -> Listed:
    """A falling list that begins elsewhere and ends where it ends, its steps in proportion."""
    last = listed[-1]
    length = listed[0] - last
    share = (listed - last) / length if length else np.ones_like(listed)
    moved: Listed = last + share * (first - last)
    return moved.round() if (_is_whole(listed) if whole is None else whole) else moved


def _is_whole(listed: Listed) -> bool:
    return bool((listed == listed.round()).all())


def _is_same(own: Listed, other: Listed | None) -> bool:
    return other is not None and np.array_equal(own, other)


def _like(form: Shaped[Tensor, " steps"], values: Listed) -> Shaped[Tensor, " steps"]:
    return torch.from_numpy(values).to(device=form.device, dtype=form.dtype)
