"""Noise schedules that end in pure noise: what works with them, and which schedulers cannot."""

import diffusers
import numpy as np
import pytest
import torch

import sdbench
from sdbench.experiments.branch_choice import BranchChoice
from sdbench.experiments.sensitivity import sweep
from sdbench.study.generation import Generation
from sdbench.study.study import Study
from sdbench.variants.guidance import guided_by
from sdbench.variants.noise import clean_latent, noise_to_signal
from sdbench.variants.refusals import require_terminal_noise
from sdbench.variants.schedule import GuidanceSchedule
from tests import tiny
from tests.families import schedulers

pytestmark = [  # diffusers' KDPM2 schedulers, as they are made
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
]
ZERO = {
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
}
CAN = ("DDIM", "Euler", "Euler ancestral", "DPM++ 2M", "DPM++ 2M SDE", "UniPC", "TCD")
CANNOT = sorted(schedulers.DIFFUSION.keys() - {*CAN})
CANNOT_BESIDES = (
    "DPMSolverSinglestepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "SASolverScheduler",
    "EDMEulerScheduler",
    "IPNDMScheduler",
)
VARIANTS = (
    *("cfg", "last:50%", "interval:1-inf", "interval:0.5-20", "adaptive:0.99", "cached:3"),
    *("compressed:2", "rescale:0.7", "schedule:linear", "guider:apg", "guider:cfg-zero"),
    *("deepcache:3", "steps:3", "steps:7", "random:50%@0", "unguided"),
)
PROMPTS = tiny.PROMPTS[:1]


def config():
    found = dict(tiny.scheduler().config)
    found.pop("_use_default_values")  # those would not be handed on
    return found | ZERO


def pipeline(name="DDIM"):
    pipe = tiny.stable_diffusion()
    pipe.scheduler = schedulers.DIFFUSION[name](config())
    return pipe


def study(**changes):
    fields = {"prompts": PROMPTS, "seeds": [0], "num_steps": 8, "guidance_scale": 5.0}
    fields |= {"variants": list(VARIANTS), "metrics": [], "repeats": 1, "warmups": 0}
    return Study(**{"model": "tiny", "timing": "calls"} | fields | changes)


@pytest.mark.parametrize("name", CAN)
def test_methods_work_from_pure_noise(name, tmp_path):
    results = sdbench.run(study(), tmp_path / "out", pipe=pipeline(name))
    runs = results.runs[results.runs["phase"].eq("measured")].set_index("variant")
    assert runs["status"].eq("ok").all(), runs["message"].dropna().to_dict()
    assert set(runs.index) == {*VARIANTS}
    assert (runs["first_timestep"] == 999).all()
    assert (runs["first_sigma"] > 4000).all()

    steps = results.steps[results.steps["phase"].eq("measured")]
    cfg = steps[steps["variant"].eq("cfg")]
    assert cfg["guidance_cosine"].notna().all()
    guided = steps.groupby("variant")["guided"].sum()
    assert guided["interval:1-inf"] == (cfg["sigma"] > 1).sum() > 1
    assert guided["interval:0.5-20"] == cfg["sigma"].between(0.5, 20, inclusive="right").sum() < 8


def test_fewer_steps_fit_a_list_that_begins_before_pure_noise(tmp_path):
    pipe = pipeline()
    pipe.scheduler = diffusers.DDIMScheduler.from_config(config() | {"timestep_spacing": "leading"})
    results = sdbench.run(study(variants=["cfg", "steps:7"]), tmp_path / "out", pipe=pipe)
    assert results.runs["message"].isna().all()
    assert results.runs["first_timestep"].nunique() == 1


def test_the_terminal_step_has_an_infinite_sigma(tmp_path):
    results = sdbench.run(study(variants=["cfg"]), tmp_path / "out", pipe=pipeline())
    sigma = sdbench.read(tmp_path / "out").steps["sigma"].to_numpy(float)
    assert np.isinf(sigma[0])
    assert (np.diff(sigma[1:]) < 0).all()
    assert np.isinf(results.runs["first_sigma"].iloc[0])


def test_the_clean_latent_of_pure_noise_is_the_negative_velocity():
    """So cosine and norm of guidance are finite there, and those of the predictions themselves."""
    pipe = pipeline()
    velocity, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(8)
    own = pipe.scheduler.step(velocity, pipe.scheduler.timesteps[0], noise).pred_original_sample
    sigma = noise_to_signal(pipe.scheduler, pipe.scheduler.timesteps[0], None, noise.device)
    assert torch.equal(clean_latent(pipe.scheduler, velocity, noise, sigma), -velocity)
    assert torch.allclose(own, -velocity)


def image(pipe, mask):
    with guided_by(pipe, GuidanceSchedule.from_mask([step == "1" for step in mask])):
        call = {"num_inference_steps": 4, "guidance_scale": 5.0}
        shown = pipe(PROMPTS, generator=[torch.Generator().manual_seed(0)], **call).images[0]
    return np.asarray(shown, dtype=float) / 255


@pytest.mark.parametrize("name", ["DDIM", "Euler", "DPM++ 2M", "UniPC"])
def test_branches_are_calls_of_their_own(name):
    """The engine that shares steps gives what a call per mask gives."""
    masks = ("0111", "1100")
    generation = Generation(
        model="tiny", prompts=PROMPTS, seeds=[0], num_steps=4, guidance_scale=5.0
    )
    found = sweep(
        pipeline(name), generation, BranchChoice(masks=masks), None, metrics=["psnr"]
    ).sensitivity.set_index("mask")["psnr"]

    pipe = pipeline(name)
    full = image(pipe, "1111")
    errors = {mask: np.square(image(pipe, mask) - full).mean() for mask in masks}
    for mask, error in errors.items():
        assert found[mask] == pytest.approx(-10 * np.log10(error), abs=1e-3)


@pytest.mark.parametrize("name", [*CANNOT, *CANNOT_BESIDES])
def test_a_scheduler_without_it_is_refused_before_its_first_evaluation(name):
    kind = getattr(diffusers, name, None)
    make = schedulers.DIFFUSION[name] if kind is None else kind.from_config
    pipe = tiny.stable_diffusion()
    pipe.scheduler = make(config())
    calls = []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    with (
        pytest.raises(ValueError, match=r"cannot rescale its betas .* DDIM, Euler, DPMSolver"),
        guided_by(pipe, GuidanceSchedule.from_mask([True] * 4)),
    ):
        tiny.run(pipe)
    assert not calls


def test_a_schedule_that_keeps_some_signal_is_left_alone():
    require_terminal_noise(tiny.scheduler())
    require_terminal_noise(object())
