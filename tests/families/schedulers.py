"""The schedulers that the seam is tested on; each is made from another's config."""

from collections.abc import Callable

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


def _a(kind, **settings) -> Callable:
    return lambda config: kind.from_config(config, **settings)


DIFFUSION: dict[str, Callable] = {
    "DDIM": _a(DDIMScheduler),
    "PNDM": _a(PNDMScheduler, skip_prk_steps=True),
    "LMS": _a(LMSDiscreteScheduler),
    "Euler": _a(EulerDiscreteScheduler),
    "Euler ancestral": _a(EulerAncestralDiscreteScheduler),
    "Heun": _a(HeunDiscreteScheduler),
    "DPM++ 2M": _a(DPMSolverMultistepScheduler),
    "DPM++ 2M SDE": _a(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"),
    "UniPC": _a(UniPCMultistepScheduler),
    "DEIS": _a(DEISMultistepScheduler, algorithm_type="deis", solver_type="logrho"),
    "TCD": _a(TCDScheduler),
}
_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOW: dict[str, Callable] = {
    "FlowMatch Euler": _a(FlowMatchEulerDiscreteScheduler),
    "FlowMatch Heun": _a(FlowMatchHeunDiscreteScheduler),
    "DPM++ 2M": _a(DPMSolverMultistepScheduler, **_FLOW),
    "UniPC": _a(UniPCMultistepScheduler, **_FLOW),
}
