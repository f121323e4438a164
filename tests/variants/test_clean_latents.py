"""Which clean latent a prediction means, held against every scheduler's own step.

The oracle is what the scheduler itself takes for the clean latent: `pred_original_sample` or
`convert_model_output`; of those that show neither, where a last step ends, which removes all noise.
The preconditioned ones are also held against data whose denoiser is known in closed form.
"""

import copy
import functools
import importlib
import inspect
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMInverseScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    PiflowScheduler,
    SCMScheduler,
)
from torch.nn.functional import cosine_similarity

from sdbench.instruments.clock import clock_for
from sdbench.instruments.steps import StepProbe
from sdbench.variants.adapters import applied
from sdbench.variants.guidance import guided_by
from sdbench.variants.noise import clean_latent, noise_to_signal, tells_clean_latent
from sdbench.variants.registry import parse
from sdbench.variants.trace import Unsupported
from tests import tiny
from tests.variants.test_noise_of_schedulers import ARGUMENTS, KINDS, TELLS_NOTHING

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CPU = torch.device("cpu")
SAMPLE, ONE, OTHER = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
STEPS = 10

# What no single step shows, and what the tests below hold in another way.
SHOWS_NOTHING = {
    *("PNDMScheduler", "RePaintScheduler", "DDPMWuerstchenScheduler", "CogVideoXDPMScheduler"),
    *("LCMScheduler", "TCDScheduler", "DPMSolverSDEScheduler"),
    *("HeliosScheduler", "HeliosDMDScheduler", "FlowMatchHeunDiscreteScheduler"),
    "PiflowScheduler",
}
ENDS_CLEAN = {
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "FlowMapEulerDiscreteScheduler"),
    *("LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler", "IPNDMScheduler"),
    "CMStochasticIterativeScheduler",
}
# Predictions that these refuse, although they have the setting.
REFUSED = {
    *((f"{name}Scheduler", "sample") for name in ("EDMEuler", "EDMDPMSolverMultistep")),
    *((f"{name}Scheduler", "sample") for name in ("KDPM2Discrete", "KDPM2AncestralDiscrete")),
    ("EulerAncestralDiscreteScheduler", "sample"),
    ("UnCLIPScheduler", "v_prediction"),
}
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


def parameters(name):
    return inspect.signature(KINDS[name].__init__).parameters


@functools.cache
def ready(name, prediction):
    """A scheduler that leaves the clean latent as it is, at the start of its loop."""
    settings = dict(ARGUMENTS.get(name, {}))
    settings |= dict.fromkeys({"clip_sample", "clip_denoised"} & set(parameters(name)), False)
    if prediction is not None:
        settings |= {"prediction_type": prediction}
    if name.startswith("DPMSolver"):
        settings |= {"algorithm_type": "dpmsolver++"}
    if prediction == "flow_prediction":
        settings |= {"use_flow_sigmas": True}
    scheduler = KINDS[name](**settings)
    scheduler.set_timesteps(STEPS)
    return scheduler


def observed(name, prediction, place):
    """A scheduler at a step of its loop, the step's timestep and sigma."""
    scheduler = copy.deepcopy(ready(name, prediction))
    place = range(len(scheduler.timesteps))[place]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(place)
    timestep = scheduler.timesteps[place]
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(SAMPLE, timestep)
    counted = place if hasattr(scheduler, "step_index") else None
    return scheduler, timestep, noise_to_signal(scheduler, timestep, counted, CPU)


def own_clean_latent(name, prediction, place, output):
    """What the scheduler takes for it, up to a factor."""
    scheduler, timestep, sigma = observed(name, prediction, place)
    if not hasattr(scheduler, "convert_model_output"):
        return scheduler.step(output, timestep, SAMPLE).pred_original_sample
    scheduler._init_step_index(timestep)
    converted = scheduler.convert_model_output(output, sample=SAMPLE)
    if name != "DEISMultistepScheduler":
        return converted

    # This one goes on with the noise.
    noise = (
        sigma / (1 + sigma) if prediction == "flow_prediction" else sigma / (1 + sigma**2).sqrt()
    )
    return SAMPLE - noise * converted


def combinations():
    for name in sorted(set(KINDS) - TELLS_NOTHING - SHOWS_NOTHING - ENDS_CLEAN):
        for prediction in PREDICTIONS:
            if prediction == "flow_prediction" and "use_flow_sigmas" not in parameters(name):
                continue
            if "prediction_type" in parameters(name) and (name, prediction) not in REFUSED:
                yield name, prediction


def differs(found, expected):
    """How far two pairs of latents are from being the same up to one factor."""
    one, other = (torch.stack(pair).flatten().double() for pair in (found, expected))
    factor = (one @ other) / (other @ other)
    assert factor > 0
    return float((one - factor * other).norm() / one.norm())


@pytest.mark.parametrize(("name", "prediction"), list(combinations()))
def test_the_clean_latent_is_the_schedulers_own(name, prediction):
    for place in (0, 4, 8):
        expected = [own_clean_latent(name, prediction, place, out) for out in (ONE, OTHER)]
        scheduler, _, sigma = observed(name, prediction, place)
        found = [clean_latent(scheduler, out, SAMPLE, sigma) for out in (ONE, OTHER)]
        # DEIS gives the noise: what is left of it at a high sigma is rounded.
        assert differs(found, expected) < (1e-4 if name.startswith("DEIS") else 1e-6), place


@pytest.mark.parametrize(("name", "prediction"), sorted(REFUSED))
def test_what_is_left_out_is_refused_by_diffusers(name, prediction):
    with pytest.raises((NotImplementedError, ValueError), match=r"(?i)prediction"):
        own_clean_latent(name, prediction, 0, ONE)


@pytest.mark.parametrize("name", sorted(ENDS_CLEAN))
def test_a_last_step_ends_in_the_clean_latent(name):
    scheduler, timestep, sigma = observed(name, None, -1)
    ended = scheduler.step(ONE, timestep, SAMPLE).prev_sample
    torch.testing.assert_close(clean_latent(scheduler, ONE, SAMPLE, sigma), ended)


@pytest.mark.parametrize(
    "name", sorted(SHOWS_NOTHING - {"PiflowScheduler", "HeliosScheduler", "HeliosDMDScheduler"})
)
def test_the_right_noise_leaves_the_clean_latent(name, torchsde):
    kind = KINDS.get(name) or torchsde(name)
    scheduler = kind()
    scheduler.set_timesteps(STEPS)
    place = 4
    counted = place if hasattr(scheduler, "step_index") else None
    timestep = scheduler.timesteps[place]
    sigma = noise_to_signal(scheduler, timestep, counted, CPU)
    if name.startswith("Flow"):
        sample = scheduler.scale_noise(ONE, timestep.reshape(1), OTHER)
        prediction = OTHER - ONE
    elif name == "RePaintScheduler":  # its own way to add noise is another one
        kept = scheduler.alphas_cumprod[timestep]
        sample, prediction = kept.sqrt() * ONE + (1 - kept).sqrt() * OTHER, OTHER
    else:
        sample = scheduler.add_noise(ONE, OTHER, timestep.reshape(1))
        prediction = OTHER
    found = clean_latent(scheduler, prediction, sample, sigma)
    assert differs([found], [ONE]) < 1e-4


@pytest.fixture
def torchsde(monkeypatch):
    """Finds a scheduler whose file imports torchsde, which only its steps use."""
    module = ModuleType("torchsde")
    module.BrownianInterval = module.BrownianTree = object
    monkeypatch.setitem(sys.modules, "torchsde", module)
    files = {
        "CosineDPMSolverMultistepScheduler": "scheduling_cosine_dpmsolver_multistep",
        "DPMSolverSDEScheduler": "scheduling_dpmsolver_sde",
    }
    yield lambda name: getattr(importlib.import_module(f"diffusers.schedulers.{files[name]}"), name)
    for file in files.values():
        sys.modules.pop(f"diffusers.schedulers.{file}", None)


# Data with variance `sigma_data` squared around a mean: its denoiser is known in closed form.

PRECONDITIONED = [EDMEulerScheduler, EDMDPMSolverMultistepScheduler]
MEANS = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
"""Of the data with the prompt, and of all data."""
SPREAD = 0.5  # of the data, which is also what the networks are preconditioned for


def denoised(noisy, mean, sigma):
    """The expected clean latent."""
    return (SPREAD**2 * noisy + sigma**2 * mean) / (SPREAD**2 + sigma**2)


def network(noisy, mean, sigma, sign):
    """What a perfect network says, by table 1 of Karras et al. 2022."""
    skip = SPREAD**2 / (sigma**2 + SPREAD**2)
    out = sigma * SPREAD / np.sqrt(sigma**2 + SPREAD**2)
    return (denoised(noisy, mean, sigma) - skip * noisy) / (sign * out)


@pytest.mark.parametrize("place", [0, 4, 9])
@pytest.mark.parametrize(("prediction", "sign"), [("epsilon", 1), ("v_prediction", -1)])
@pytest.mark.parametrize("kind", [*PRECONDITIONED, "CosineDPMSolverMultistepScheduler"])
def test_a_preconditioned_network_means_the_denoised_latent(
    kind, prediction, sign, place, torchsde
):
    kind = torchsde(kind) if isinstance(kind, str) else kind
    scheduler = kind(prediction_type=prediction, sigma_data=SPREAD)
    scheduler.set_timesteps(STEPS)
    sigma = noise_to_signal(scheduler, scheduler.timesteps[place], place, CPU)
    noisy = SAMPLE * float(sigma)
    for mean in MEANS:
        output = network(noisy, mean, float(sigma), sign)
        expected = denoised(noisy, mean, float(sigma))
        found = clean_latent(scheduler, output, noisy, sigma)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def perfect(pipe, sign):
    """The pipeline with a perfect network for such data."""

    def forward(scaled, timestep, *, return_dict=True, **arguments):
        sigma = float(torch.exp(4 * timestep.flatten()[0]))
        noisy = scaled * np.sqrt(sigma**2 + SPREAD**2)
        uncond, cond = noisy.chunk(2) if len(noisy) > len(tiny.PROMPTS) else (noisy[:0], noisy)
        answers = [network(uncond, MEANS[1], sigma, sign), network(cond, MEANS[0], sigma, sign)]
        return (torch.cat(answers),)

    pipe.unet.forward = forward
    return pipe


def expected_cosines(latents):
    """Of both denoised latents, at every step of a call."""
    cosines = []
    for noisy, sigma in latents:
        one, other = (denoised(noisy, mean, sigma).flatten(1) for mean in MEANS)
        cosines.append(cosine_similarity(one, other))
    return torch.stack(cosines)


def noisy_latents(pipe):
    """What every step begins with, and its sigma, by a listener of the scheduler's own step."""
    seen = []
    original = pipe.scheduler.step

    def step(model_output, timestep, sample, *args, **kwargs):
        seen.append((sample.clone(), float(torch.exp(4 * torch.as_tensor(timestep)))))
        return original(model_output, timestep, sample, *args, **kwargs)

    step.__signature__ = inspect.signature(original)
    pipe.scheduler.step = step
    return seen


@pytest.mark.parametrize(("prediction", "sign"), [("epsilon", 1), ("v_prediction", -1)])
@pytest.mark.parametrize("kind", PRECONDITIONED)
def test_the_cosine_of_a_preconditioned_pipeline_is_that_of_its_denoisers(kind, prediction, sign):
    pipe = perfect(tiny.stable_diffusion(), sign)
    pipe.scheduler = kind(prediction_type=prediction, sigma_data=SPREAD)
    seen = noisy_latents(pipe)
    probe = StepProbe(pipe.scheduler, clock_for(CPU))
    with guided_by(pipe, None, listeners=[probe]), probe.call() as record:
        tiny.run(pipe)
    expected = expected_cosines(seen).mean(1)
    found = [row["guidance_cosine"] for row in record.steps]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert max(found) - min(found) > 0.1


@pytest.mark.parametrize("kind", PRECONDITIONED)
def test_adaptive_guides_a_preconditioned_pipeline_by_its_denoisers(kind):
    def run(variant):
        pipe = perfect(tiny.stable_diffusion(), 1)
        pipe.scheduler = kind(sigma_data=SPREAD)
        seen = noisy_latents(pipe)
        with applied(pipe, parse(variant), guidance_scale=2.0) as trace:
            tiny.run(pipe, num_inference_steps=12)
        return expected_cosines(seen), trace.steps["rows"].tolist()

    guided, _ = run("cfg")
    lower, upper = guided.flatten().sort().values[len(guided) - 1 :][:2]
    middle = float(lower + upper) / 2
    cosines, rows = run(f"adaptive:{middle:.6f}")

    # An image is guided up to the step in which it passes, and no longer.
    passed = torch.cummax((cosines > middle).int(), dim=0).values
    guided_images = [2, *(2 - passed[:-1].sum(1)).tolist()]
    assert rows == [2 + images for images in guided_images]
    assert len(set(rows)) > 1


def test_a_step_back_begins_with_less_noise_than_it_is_named_for():
    scheduler = DDIMInverseScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    abar = torch.cat([torch.ones(1), scheduler.alphas_cumprod[scheduler.timesteps[:-1]]])
    found = [noise_to_signal(scheduler, time, None, CPU) for time in scheduler.timesteps]
    torch.testing.assert_close(torch.stack(found), ((1 - abar) / abar).sqrt())


@pytest.mark.parametrize("kind", [PiflowScheduler, SCMScheduler])
def test_of_other_predictions_there_is_no_clean_latent(kind):
    scheduler = kind()
    assert not tells_clean_latent(scheduler)
    assert clean_latent(scheduler, ONE, SAMPLE, torch.tensor(1.0)).isnan().all()


def test_adaptive_is_refused_where_the_prediction_is_not_known():
    pipe = tiny.stable_diffusion()
    pipe.scheduler.register_to_config(prediction_type="trigflow")
    refused = pytest.raises(Unsupported, match="does not say what its network predicts")
    with refused, applied(pipe, parse("adaptive:0.9"), guidance_scale=2.0):
        tiny.run(pipe)


def test_a_consistency_model_is_its_own_denoiser():
    scheduler = CMStochasticIterativeScheduler()
    scheduler.set_timesteps(STEPS)
    smallest = torch.tensor(scheduler.config.sigma_min)
    torch.testing.assert_close(clean_latent(scheduler, ONE, SAMPLE, smallest), SAMPLE)
