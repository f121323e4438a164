"""The caches of diffusers for transformers: each keeps what an earlier step computed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sdbench.models.pipeline import Pipeline, TransformerPipeline, denoisers_of
from sdbench.variants.accelerators import Attach, accelerator, add_accelerator
from sdbench.variants.arguments import NUMBER, PERIOD
from sdbench.variants.hooks import wrapped
from sdbench.variants.trace import Unsupported
from sdbench.variants.variant import Method


def _of_diffusers(
    configure: Callable[[Any, float], Any],
) -> Attach:
    """A cache of diffusers' own, for the transformers that it knows."""

    @contextmanager
    def attach(pipe: Pipeline, number: float) -> Iterator[None]:
        denoisers: list[Any] = denoisers_of(pipe)
        denoiser, *others = denoisers
        if others or not hasattr(denoiser, "enable_cache"):
            raise Unsupported(f"diffusers has no caches for {type(denoiser).__name__}")
        if denoiser.is_cache_enabled:
            raise ValueError(
                f"{type(denoiser).__name__} already has a cache enabled: disable_cache() it first"
            )
        try:
            denoiser.enable_cache(configure(pipe, number))
        except (ValueError, KeyError, AttributeError, StopIteration) as error:
            raise Unsupported(
                f"this cache does not know {type(denoiser).__name__}: {error}"
            ) from None

        def beginning(set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(set_timesteps)
            def begin(*args: Any, **kwargs: Any) -> Any:
                # A pipeline does so at the end of a call, but not of one that fails.
                denoiser._reset_stateful_cache()
                return set_timesteps(*args, **kwargs)

            return begin

        try:
            with wrapped(pipe.scheduler, "set_timesteps", beginning):
                yield
        finally:
            denoiser.disable_cache()

    return attach


def _broadcast(pipe: TransformerPipeline, period: float) -> Any:
    from diffusers import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=int(period),
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def _first_block(pipe: TransformerPipeline, threshold: float) -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=threshold)


def _taylor(pipe: TransformerPipeline, interval: float) -> Any:
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(cache_interval=int(interval))


def _faster(pipe: TransformerPipeline, period: float) -> Any:
    from diffusers import FasterCacheConfig

    return FasterCacheConfig(
        spatial_attention_block_skip_range=int(period),
        spatial_attention_timestep_skip_range=(-1, 681),
        current_timestep_callback=lambda: pipe.current_timestep,
        is_guidance_distilled=True,  # its other half is `cached:N,split`
    )


def _sea_cache(pipe: TransformerPipeline, threshold: float) -> Any:
    """Steps are left out where the latents beneath the noise change little.

    A pipeline must say at which step it is, and how noisy it is there: Wan's and Cosmos 3's do.
    Elsewhere every step runs in full. Each half has a history of its own, and a half that guidance
    skips in a step begins it anew.
    """
    from diffusers import SeaCacheConfig

    return SeaCacheConfig(threshold=threshold)


@contextmanager
def _mag_cache(pipe: TransformerPipeline, threshold: float) -> Iterator[None]:
    """A transformer's blocks are left out where known magnitudes say they change little.

    The magnitudes are a model's own; Flux's come with diffusers. They are stretched to a number of
    steps that is known once the loop begins, and the place in them is counted by evaluations, so
    every call begins with an empty cache.
    """
    from diffusers import MagCacheConfig
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    def configure(pipe: TransformerPipeline, threshold: float, steps: int = 1) -> Any:
        if type(pipe.transformer).__name__ != "FluxTransformer2DModel":
            raise ValueError(
                "it needs magnitudes calibrated on the model, and diffusers has Flux's only"
            )
        return MagCacheConfig(
            threshold=threshold, num_inference_steps=steps, mag_ratios=FLUX_MAG_RATIOS
        )

    def beginning(set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(set_timesteps)
        def begin(*args: Any, **kwargs: Any) -> None:
            set_timesteps(*args, **kwargs)
            pipe.transformer.disable_cache()
            pipe.transformer.enable_cache(configure(pipe, threshold, len(pipe.scheduler.timesteps)))

        return begin

    with (
        _of_diffusers(configure)(pipe, threshold),
        wrapped(pipe.scheduler, "set_timesteps", beginning),
    ):
        yield


def _cache(
    name: str,
    meaning: str,
    source: str,
    *,
    number: tuple[str, str],
    attach: Attach,
    example: str,
    by_half: bool = False,
) -> Method:
    """A cache's entry; most keep rows, so they need every step guided."""
    pattern, grammar = number
    return Method(
        name,
        example,
        meaning,
        accelerator(name, pattern, f"{name}:{grammar}", attach, constant_rows=not by_half),
        source=source,
        group="accelerators",
        add=add_accelerator,
        examples=(example,),
        saves_rows=False,
        saves_work=True,
        transformers_only=True,
    )


METHODS = (
    _cache(
        "firstblock",
        "a transformer's step skipped where its first block changes little (diffusers)",
        "github.com/chengzeyi/ParaAttention",
        number=(rf"({NUMBER})", "THRESHOLD"),
        attach=_of_diffusers(_first_block),
        example="firstblock:0.05",
    ),
    _cache(
        "taylorseer",
        "a transformer's blocks computed in one step of 5 and foretold between (diffusers)",
        "Liu et al. 2025, arXiv 2503.06923",
        number=(PERIOD, "INTERVAL of at least 2"),
        attach=_of_diffusers(_taylor),
        example="taylorseer:5",
    ),
    _cache(
        "pab",
        "a transformer's attention computed in one step of 2 (diffusers)",
        "Zhao et al. 2024, arXiv 2408.12588",
        number=(PERIOD, "PERIOD of at least 2"),
        attach=_of_diffusers(_broadcast),
        example="pab:2",
    ),
    _cache(
        "fastercache",
        "a transformer's attention reused in one step of 2; its other half is `cached:N,split` "
        "(diffusers)",
        "Lv et al. 2024, arXiv 2410.19355",
        number=(PERIOD, "PERIOD of at least 2"),
        attach=_of_diffusers(_faster),
        example="fastercache:2",
    ),
    _cache(
        "magcache",
        "a transformer's steps skipped by magnitudes calibrated beforehand, "
        "of which diffusers has Flux's",
        "Ma et al. 2025, arXiv 2506.09045",
        number=(rf"({NUMBER})", "THRESHOLD"),
        attach=_mag_cache,
        example="magcache:0.06",
    ),
    _cache(
        "seacache",
        "a video transformer's steps skipped where its latents change little beneath the noise; "
        "for Wan and Cosmos 3 (diffusers)",
        "arXiv 2602.18993",
        number=(rf"({NUMBER})", "THRESHOLD"),
        attach=_of_diffusers(_sea_cache),
        example="seacache:0.25",
        by_half=True,
    ),
)
