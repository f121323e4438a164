"""Other projects' accelerators on a stock pipeline: attached for a while, then every module is as it was.

They save work inside an evaluation where guidance schedules save evaluations, so most combine with one. Nothing is
re-implemented here; what a package needs to live beside the seam stands with it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from sdbench.variants.guidance import denoisers_of, replaced
from sdbench.variants.rows import first_tensor, halves
from sdbench.variants.trace import MissingPackage, Unsupported


@dataclass(frozen=True)
class Accelerator:
    """One accelerator.

    Args:
        attach: on a pipeline, with the number that the variant names, for the length of a block.
        guides: it decides itself which steps are guided, so no schedule goes with it.
    """

    attach: Callable[[Any, float], AbstractContextManager[None]]
    guides: bool = False


@contextmanager
def accelerated(pipe: Any, name: str, number: float) -> Iterator[None]:
    """Attach an accelerator to a pipeline; afterwards its denoiser's modules have the attributes that they had.

    Raises:
        MissingPackage: its package is not installed.
        Unsupported: it does not work on this pipeline.
    """
    modules = [module for denoiser in denoisers_of(pipe) for module in denoiser.modules()]
    before = [dict(vars(module)) for module in modules]
    try:
        with ACCELERATORS[name].attach(pipe, number):
            yield
    finally:
        for module, known in zip(modules, before, strict=True):
            for attribute in set(vars(module)) - set(known):
                delattr(module, attribute)
            vars(module).update(known)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise Unsupported(
                f"{name} does not import with the installed packages: {error}"
            ) from None
        raise MissingPackage(
            f"{name} is not installed: pip install 'sdbench[accelerators]'"
        ) from None
    except ImportError as error:
        raise Unsupported(f"{name} does not import with the installed packages: {error}") from None


def _unet(pipe: Any, name: str) -> Any:
    unet = getattr(pipe, "unet", None)
    if unet is None or not hasattr(unet, "mid_block"):
        raise Unsupported(f"{name} works on UNets, but {type(pipe).__name__} has none")
    return unet


@contextmanager
def _deepcache(pipe: Any, interval: float) -> Iterator[None]:
    """Deep features are computed in one evaluation of `interval`.

    The package finds its place by the timestep, which schedulers of second order repeat, knows no end of a call, and
    takes all evaluations to have the same rows. So evaluations are counted here, from the start of every loop. Where a
    schedule drops the unconditional half, the kept features are halved with it; where it comes back, they are computed
    anew.
    """
    unet = _unet(pipe, "DeepCache")
    helper = _package("DeepCache").DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=int(interval), cache_branch_id=0)
    helper.enable()
    inner, set_timesteps, kept = (
        helper.function_dict["unet_forward"],
        pipe.scheduler.set_timesteps,
        0,
    )

    @functools.wraps(set_timesteps)
    def begin(*args: Any, **kwargs: Any) -> Any:
        nonlocal kept
        helper.cur_timestep, helper.start_timestep, helper.cached_output, kept = -1, None, {}, 0
        return set_timesteps(*args, **kwargs)

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal kept
        rows = len(first_tensor((args, kwargs)))
        helper.cur_timestep += 1
        if kept == 2 * rows:
            helper.cached_output = halves(helper.cached_output, kept)[1]
        elif kept != rows:
            helper.start_timestep = None  # this evaluation computes everything
        kept = rows
        return inner(*args, **kwargs)

    unet.forward = forward
    with replaced(pipe.scheduler, "set_timesteps", begin):
        yield


@contextmanager
def _tgate(pipe: Any, gate_step: float) -> Iterator[None]:
    """Cross-attention is kept from `gate_step` on, and guidance ends there.

    The package is a copy of the pipeline's loop, which takes the place of `__call__`.
    """
    unet = _unet(pipe, "T-GATE")
    package, kind = _package("tgate"), type(pipe)
    loaders = {
        "StableDiffusionPipeline": "TgateSDLoader",
        "StableDiffusionXLPipeline": "TgateSDXLLoader",
    }
    if kind.__name__ not in loaders:
        raise Unsupported(f"T-GATE has no loop for {kind.__name__}")
    if getattr(pipe.scheduler, "order", 1) != 1:
        raise Unsupported(
            f"T-GATE miscounts the steps of {type(pipe.scheduler).__name__}, which is of second order"
        )
    getattr(package, loaders[kind.__name__])(pipe)
    loop = vars(pipe).pop("tgate")

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        for module in unet.modules():
            vars(module).pop("cache", None)  # of the call before
        return loop(*args, gate_step=int(gate_step), **kwargs)

    pipe.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    try:
        yield
    finally:
        pipe.__class__ = kind


def _of_diffusers(
    configure: Callable[[Any, float], Any],
) -> Callable[[Any, float], AbstractContextManager[None]]:
    """A cache of diffusers' own, for the transformers that it knows."""

    @contextmanager
    def attach(pipe: Any, number: float) -> Iterator[None]:
        denoisers: list[Any] = denoisers_of(pipe)
        denoiser, *others = denoisers
        if others or not hasattr(denoiser, "enable_cache"):
            raise Unsupported(f"diffusers has no caches for {type(denoiser).__name__}")
        try:
            denoiser.enable_cache(configure(pipe, number))
        except (ValueError, KeyError, AttributeError, StopIteration) as error:
            raise Unsupported(
                f"this cache does not know {type(denoiser).__name__}: {error}"
            ) from None
        try:
            yield
        finally:
            denoiser.disable_cache()

    return attach


def _broadcast(pipe: Any, period: float) -> Any:
    from diffusers import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=int(period),
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def _first_block(pipe: Any, threshold: float) -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=threshold)


def _taylor(pipe: Any, interval: float) -> Any:
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(cache_interval=int(interval))


def _faster(pipe: Any, period: float) -> Any:
    from diffusers import FasterCacheConfig

    return FasterCacheConfig(
        spatial_attention_block_skip_range=int(period),
        spatial_attention_timestep_skip_range=(-1, 681),
        current_timestep_callback=lambda: pipe.current_timestep,
        is_guidance_distilled=True,  # its other half, the cached unconditional prediction, is `cached:N,split`
    )


@contextmanager
def _mag_cache(pipe: Any, threshold: float) -> Iterator[None]:
    """A transformer's blocks are left out where, by magnitudes known beforehand, they would change little.

    The magnitudes are a model's own; Flux's come with diffusers. They are stretched to a number of steps that is known
    once the loop begins, and the place in them is counted by evaluations, so every call begins with a cache of its own.
    """
    from diffusers import MagCacheConfig
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    def configure(pipe: Any, threshold: float, steps: int = 1) -> Any:
        if type(pipe.transformer).__name__ != "FluxTransformer2DModel":
            raise ValueError(
                "it needs magnitudes calibrated on the model, and diffusers has Flux's only"
            )
        return MagCacheConfig(
            threshold=threshold, num_inference_steps=steps, mag_ratios=FLUX_MAG_RATIOS
        )

    set_timesteps = pipe.scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def begin(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        pipe.transformer.disable_cache()
        pipe.transformer.enable_cache(configure(pipe, threshold, len(pipe.scheduler.timesteps)))

    with (
        _of_diffusers(configure)(pipe, threshold),
        replaced(pipe.scheduler, "set_timesteps", begin),
    ):
        yield


ACCELERATORS = {
    "deepcache": Accelerator(_deepcache),
    "tgate": Accelerator(_tgate, guides=True),
    "firstblock": Accelerator(_of_diffusers(_first_block)),
    "taylorseer": Accelerator(_of_diffusers(_taylor)),
    "pab": Accelerator(_of_diffusers(_broadcast)),
    "fastercache": Accelerator(_of_diffusers(_faster)),
    "magcache": Accelerator(_mag_cache),
}
