from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch.nn.functional import cosine_similarity

from sdbench.variants.guidance import guided_by
from sdbench.variants.noise import clean_latent, is_flow, noise_to_signal
from tests import tiny

# diffusers' schedulers pass tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
KEPT = np.cumprod(1 - BETAS)  # abar, without diffusers
RATIOS = np.sqrt((1 - KEPT) / KEPT)
DISCRETE = [
    (DDIMScheduler, {}),
    (DDPMScheduler, {"timestep_spacing": "trailing"}),
    (PNDMScheduler, {"skip_prk_steps": True}),
    (EulerDiscreteScheduler, {}),
    (EulerAncestralDiscreteScheduler, {}),
    (LMSDiscreteScheduler, {}),
    (HeunDiscreteScheduler, {}),
    (DPMSolverMultistepScheduler, {}),
    (DPMSolverSinglestepScheduler, {}),
    (UniPCMultistepScheduler, {}),
]


def observed(pipe):
    with guided_by(pipe, None) as trace:
        tiny.run(pipe)
    return trace.steps


@pytest.mark.parametrize(
    ("scheduler", "settings"), DISCRETE, ids=lambda value: getattr(value, "__name__", "")
)
def test_sigma_is_the_ratio_of_noise_to_signal_at_every_step(scheduler, settings):
    steps = observed(tiny.stable_diffusion(scheduler, **settings))
    np.testing.assert_allclose(
        steps.sigma, np.interp(steps.timestep, range(1000), RATIOS), rtol=1e-4
    )
    assert steps.sigma.iloc[0] > 2 > 1 > steps.sigma.iloc[-1]


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler]
)
def test_sigma_counts_from_where_image_to_image_begins(scheduler):
    pipe = tiny.image_to_image()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    steps = observed(pipe)
    assert len(steps) == 3
    np.testing.assert_allclose(
        steps.sigma, np.interp(steps.timestep, range(1000), RATIOS), rtol=1e-4
    )


def test_sigma_of_a_schedule_between_timesteps_is_the_schedulers_own():
    pipe = tiny.stable_diffusion(EulerDiscreteScheduler, use_karras_sigmas=True)
    steps = observed(pipe)
    np.testing.assert_allclose(steps.sigma, pipe.scheduler.sigmas[:-1], rtol=1e-6)


@pytest.mark.parametrize("make", [tiny.stable_diffusion_3, tiny.flux])
def test_sigma_of_flow_matching_is_noise_to_signal_too(make):
    steps = observed(make())
    share = steps.timestep / 1000  # x = (1 - share) * x0 + share * noise
    assert steps.sigma[0] == np.inf  # nothing but noise
    np.testing.assert_allclose(steps.sigma[1:], (share / (1 - share))[1:], rtol=1e-4)


def test_multi_evaluation_flow_matching_counts_its_own_sigmas():
    pipe = tiny.stable_diffusion_3()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    steps = observed(pipe)
    share = steps.timestep / 1000
    assert len(steps) == 7
    np.testing.assert_allclose(steps.sigma[1:], (share / (1 - share))[1:], rtol=1e-4)


def loop(scheduler, step):
    """A scheduler as it stands at one step of a loop of ten."""
    scheduler.set_timesteps(10)
    timestep = scheduler.timesteps[step]
    return timestep, noise_to_signal(scheduler, timestep, step, CPU)


def target(scheduler, kind, clean, noise, timestep):
    """What a perfect network would say."""
    if kind == "v_prediction":
        return DDIMScheduler(**STABLE_DIFFUSION).get_velocity(clean, noise, timestep.long())
    return {"epsilon": noise, "sample": clean, "flow": noise - clean}[kind]


PERFECT = [
    (DDIMScheduler, "epsilon"),
    (DDIMScheduler, "v_prediction"),
    (DDIMScheduler, "sample"),
    (DPMSolverMultistepScheduler, "epsilon"),
    (DPMSolverMultistepScheduler, "v_prediction"),
    (UniPCMultistepScheduler, "epsilon"),
    (EulerDiscreteScheduler, "epsilon"),
    (EulerDiscreteScheduler, "v_prediction"),
    (EulerDiscreteScheduler, "sample"),
    (HeunDiscreteScheduler, "epsilon"),
    (HeunDiscreteScheduler, "v_prediction"),
    (FlowMatchEulerDiscreteScheduler, "flow"),
]


@pytest.mark.parametrize("step", [0, 4, 9])
@pytest.mark.parametrize(
    ("scheduler", "kind"), PERFECT, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_perfect_prediction_gives_the_clean_latent(scheduler, kind, step):
    flow = kind == "flow"
    scheduler = (
        scheduler() if flow else scheduler(**STABLE_DIFFUSION, prediction_type=kind, steps_offset=1)
    )
    timestep, sigma = loop(scheduler, step)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    times = timestep.repeat(3)
    sample = (
        scheduler.scale_noise(clean, times, noise)
        if flow
        else scheduler.add_noise(clean, noise, times)
    )
    found = clean_latent(scheduler, target(scheduler, kind, clean, noise, times), sample, sigma)
    # A common positive factor is left open; at sigma = 14 in float32 the rest agrees to 1e-5.
    torch.testing.assert_close(
        cosine_similarity(found.flatten(1), clean.flatten(1)), torch.ones(3), atol=1e-5, rtol=0
    )
    ratios = (found.flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)).double()
    torch.testing.assert_close(ratios, ratios[:1].expand(3), rtol=1e-4, atol=0)


def test_clean_latents_of_two_predictions_share_their_factor():
    scheduler = DDIMScheduler(**STABLE_DIFFUSION)
    timestep, sigma = loop(scheduler, 5)
    kept = float(KEPT[int(timestep)])
    sample, one, other = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = clean_latent(scheduler, one, sample, sigma) - clean_latent(
        scheduler, other, sample, sigma
    )
    x0 = [(sample - (1 - kept) ** 0.5 * prediction) / kept**0.5 for prediction in (one, other)]
    torch.testing.assert_close(found, (x0[0] - x0[1]) * kept**0.5)


@pytest.mark.parametrize("scheduler", ["flow", "v_prediction"])
def test_pure_noise_has_a_clean_latent_too(scheduler):
    config = {} if scheduler == "flow" else {"prediction_type": "v_prediction"}
    name = "FlowMatchEulerDiscreteScheduler" if scheduler == "flow" else "DDIMScheduler"
    fake = type(name, (), {"config": config, "init_noise_sigma": 1.0})()
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prediction = (
        noise - clean if scheduler == "flow" else -clean
    )  # alpha * noise - sigma * clean, alpha = 0
    torch.testing.assert_close(
        clean_latent(fake, prediction, noise, torch.tensor(torch.inf)), clean
    )


def test_zero_terminal_snr_begins_without_signal():
    pipe = tiny.stable_diffusion(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    assert observed(pipe).sigma[0] == np.inf


def test_flow_schedulers_are_known_by_class_or_settings():
    assert is_flow(FlowMatchEulerDiscreteScheduler())
    assert is_flow(UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"))
    assert is_flow(
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    )
    assert not is_flow(DDIMScheduler())
    assert not is_flow(EulerDiscreteScheduler(prediction_type="v_prediction"))


def test_flow_sigmas_of_other_schedulers_are_read_as_such():
    scheduler = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    _, sigma = loop(scheduler, 5)
    share = float(scheduler.sigmas[5])
    assert float(sigma) == pytest.approx(share / (1 - share))
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = clean_latent(scheduler, noise - clean, (1 - share) * clean + share * noise, sigma)
    torch.testing.assert_close(found, clean)


def test_a_number_serves_as_timestep():
    scheduler = SimpleNamespace(alphas_cumprod=torch.tensor([0.9, 0.5, 0.2]))
    assert float(noise_to_signal(scheduler, 2, None, CPU)) == pytest.approx(2.0)
    assert float(noise_to_signal(scheduler, torch.tensor(1), None, CPU)) == pytest.approx(1.0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler]
)
def test_nothing_waits_for_the_gpu(scheduler):
    scheduler = scheduler()
    scheduler.set_timesteps(10, device="cuda")
    prediction, sample = torch.randn(2, 3, 4, 8, 8, device="cuda")
    index = None if isinstance(scheduler, DDIMScheduler) else 3
    torch.cuda.set_sync_debug_mode("error")
    try:
        sigma = noise_to_signal(scheduler, scheduler.timesteps[3], index, prediction.device)
        clean_latent(scheduler, prediction, sample, sigma)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(sigma)
