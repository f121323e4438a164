"""The schedulers that the seam is tested on, by the names that people use for them."""

from collections.abc import Callable
from functools import partial

from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from tests import tiny


def _on_stable_diffusion(kind, **settings):
    """A scheduler on Stable Diffusion's noise."""
    return kind.from_config(tiny.scheduler().config, **settings)


DIFFUSION: dict[str, Callable] = {
    "DDIM": partial(_on_stable_diffusion, DDIMScheduler),
    "PNDM": partial(_on_stable_diffusion, PNDMScheduler, skip_prk_steps=True),
    "LMS": partial(_on_stable_diffusion, LMSDiscreteScheduler),
    "Euler": partial(_on_stable_diffusion, EulerDiscreteScheduler),
    "Euler ancestral": partial(_on_stable_diffusion, EulerAncestralDiscreteScheduler),
    "Heun": partial(_on_stable_diffusion, HeunDiscreteScheduler),
    "DPM++ 2M": partial(_on_stable_diffusion, DPMSolverMultistepScheduler),
    "DPM++ 2M SDE": partial(_on_stable_diffusion, DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"),
    "UniPC": partial(_on_stable_diffusion, UniPCMultistepScheduler),
    "DEIS": partial(_on_stable_diffusion, DEISMultistepScheduler),
    "TCD": partial(_on_stable_diffusion, TCDScheduler),
}
FLOW: dict[str, Callable] = {
    "FlowMatch Euler": FlowMatchEulerDiscreteScheduler,
    "FlowMatch Heun": FlowMatchHeunDiscreteScheduler,
}
