"""What a schedule or a policy cannot work with, and what is said then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from sdbench.variants.fitted_scale import Fit
from sdbench.variants.loops import Run, random_state
from sdbench.variants.policy import Policy
from sdbench.variants.trace import Step, Unsupported

EXACT = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Share of a guided prediction that its formula may leave unexplained where it is used."""
EXACT_OF_SHORTER = 1e-2
PURE_NOISE = 1e-6
"""Share of the signal's variance below which a latent is noise; Euler's keeps 2 ** -24."""
OWN_NOISE = (
    "draws noise that is not the rows' own, so rows of one image would not stay the same: "
    "it cannot branch"
)


def require_told(kind: str, is_told: bool) -> None:
    """Refuse a policy that had to know which half is which before a step showed it."""
    if not is_told:
        raise ValueError(
            f"which half of {kind}'s evaluations is the conditional one is not known yet: call it "
            "once under guided_by(pipe, None), with guidance"
        )


def require_conditional_first(kind: str, policy: Policy, step: Step, order: Sequence[str]) -> None:
    """Refuse to drop a prediction that is asked for before the one that stands for it is there."""
    drops = not policy.plain or not policy.is_guided(step.index)
    if order[0] == "uncond" and drops:
        raise ValueError(
            f"{kind} calls its denoiser for the unconditional prediction first, "
            "when nothing can stand for it: not supported"
        )


def require_halves_only(kind: str, policy: Policy, otherwise: str) -> None:
    """Refuse to drop a half of guidance that is of another kind.

    Args:
        kind: class of the pipeline.
        policy: that may drop one.
        otherwise: of which kind it is.
    """
    steps = range(policy.loop.iterations)
    if policy.changes and not (policy.plain and all(map(policy.is_guided, steps))):
        raise ValueError(
            f"{kind} {otherwise}: guidance of its own kind, which cannot be dropped by halves"
        )


def require_exact(kind: str, fit: Fit | None, dtype: torch.dtype) -> None:
    """Refuse to correct a spent step whose guidance is not known exactly."""
    allowed = 0.0 if fit is None else EXACT.get(dtype, EXACT_OF_SHORTER)
    if fit is None or not float(fit.rest) < allowed:
        raise ValueError(
            f"{kind} guides in a way of its own, so a first step without guidance does not show "
            "which half is the conditional one: call it once under guided_by(pipe, None) before, "
            "or guide the first step"
        )


def require_halves(kind: str, step: Step, policy: Policy, *, rows: int, images: int) -> None:
    """Refuse guidance of another kind than by two predictions.

    Args:
        kind: class of the pipeline.
        step: in progress.
        policy: which may allow a third evaluation.
        rows: of the call.
        images: rows of the latents.
    """
    if rows not in (images, 2 * images):
        raise ValueError(
            f"{kind} evaluates {rows} rows for {images} latents, more than two predictions of each "
            "(perturbed attention, an image next to the text, or a second text): "
            "guidance of its own kind, which cannot be dropped by halves"
        )
    if step.given is not None and not policy.plain:
        raise ValueError(
            f"{kind} evaluates its rows a third time, which its policy has no answer for"
        )


def refuse_without_guidance(kind: str) -> NoReturn:
    """Refuse a pipeline that does not guide."""
    raise ValueError(
        f"{kind} runs without guidance here, so there is none to drop "
        "(guidance_scale of 1 or less, or a model whose guidance is distilled or embedded)"
    )


def refuse_windows(kind: str) -> NoReturn:
    """Refuse a pipeline that takes several steps of its scheduler at one timestep."""
    raise ValueError(
        f"{kind} evaluates its denoiser several times at one timestep and takes a step after each "
        "(windows of a wide picture): not supported"
    )


def require_sigmas(scheduler: Any, policy: Policy, sigmas: Sequence[float]) -> None:
    """Refuse a scheduler that says nothing of the noise, by which a policy decides."""
    if policy.needs_sigma and any(map(math.isnan, sigmas)):
        raise Unsupported(
            f"{type(scheduler).__name__} does not say how noisy its steps are, "
            "which this method decides by"
        )


def require_terminal_noise(scheduler: Any) -> None:
    """Refuse a scheduler that does not end in pure noise, for a model that was trained to.

    Many schedulers of diffusers ignore `rescale_betas_zero_snr` without a word and keep it in their
    config. All of their noise levels are then other ones than the model learned.
    """
    config = getattr(scheduler, "config", {})
    if not config.get("rescale_betas_zero_snr", False):
        return
    name = type(scheduler).__name__
    kept = getattr(scheduler, "alphas_cumprod", None)
    if kept is None or not float(kept[-1]) < PURE_NOISE:
        raise ValueError(
            f"{name} cannot rescale its betas to a terminal signal-to-noise ratio of zero "
            "(rescale_betas_zero_snr), with which this model was trained: its noise levels are "
            "others. DDIM, Euler, DPMSolverMultistep and UniPC can"
        )


def require_own_noise(scheduler: Any) -> None:
    """Refuse a scheduler that is known to draw noise for all rows at once."""
    kind = type(scheduler).__name__
    if "SDE" in kind:
        raise ValueError(f"{kind} {OWN_NOISE}")


def require_no_noise_drawn(kind: str, scheduler: Any, run: Run, device: torch.device) -> None:
    """Refuse a pipeline in whose loop the global generator moved on, where that is kept."""
    before = run.random_state
    if before is not None and not torch.equal(before, random_state(device)):
        raise ValueError(f"{kind} with {type(scheduler).__name__} {OWN_NOISE}")
