"""Every scheduler of diffusers says how noisy its steps are, or says nothing: never a wrong number.

The oracle is the scheduler's own way to put noise on something: what comes out is split into the
shares of signal and noise.
"""

import importlib
import inspect
import pkgutil
import sys
from types import ModuleType

import diffusers.schedulers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMWuerstchenScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config

from sdbench.variants.adapters import applied
from sdbench.variants.guidance import guided_by
from sdbench.variants.noise import clean_latent, is_flow, noise_to_signal
from sdbench.variants.registry import parse
from sdbench.variants.trace import Unsupported
from tests import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CPU = torch.device("cpu")
CLEAN, NOISE = torch.randn(2, 1, 4, 32, 32, generator=torch.Generator().manual_seed(0))


def kinds():
    """Every class of scheduler in diffusers that can be imported."""
    found = {}
    for module in pkgutil.walk_packages(diffusers.schedulers.__path__, "diffusers.schedulers."):
        try:
            members = vars(importlib.import_module(module.name))
        except ImportError:  # two need torchsde; they are below
            continue
        found |= {
            name: kind
            for name, kind in members.items()
            if inspect.isclass(kind) and issubclass(kind, SchedulerMixin)
        }
    del found["SchedulerMixin"]
    return found


KINDS = kinds()
FLOW = {name for name in KINDS if name.startswith(("FlowM", "Helios", "LTX", "MiniMax", "Piflow"))}
TELLS_NOTHING = {
    *("AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler"),  # of tokens
    *("EntropyBoundScheduler", "VQDiffusionScheduler"),
    *("KarrasVeScheduler", "ScoreSdeVeScheduler", "ScoreSdeVpScheduler"),  # steps of their own kind
    *("ConsistencyDecoderScheduler", "RFD4ProteinaScheduler", "SCMScheduler"),
}
ADDS_NO_NOISE = {
    *("DDIMInverseScheduler", "RePaintScheduler", "IPNDMScheduler"),
    *("LTXEulerAncestralRFScheduler", "PiflowScheduler"),
    *("HeliosScheduler", "HeliosDMDScheduler"),  # with arguments of their own
}
HALF_STEPS = {"KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "HeunDiscreteScheduler"}
HALF_STEPS |= {"FlowMatchHeunDiscreteScheduler"}
ARGUMENTS = {
    "AmusedScheduler": {"mask_token_id": 5},
    "VQDiffusionScheduler": {"num_vec_classes": 5},
    "RFD4ProteinaScheduler": {
        "schedule_mode": "log",
        "noise_mode": "tan",
        "tsr_k": 1.0,
        "tsr_sigma": 1.0,
    },
}


def made(name):
    scheduler = KINDS[name](**ARGUMENTS.get(name, {}))
    loops = name not in TELLS_NOTHING or "Ve" in name or "Vp" in name
    if loops and not name.startswith("Helios"):
        scheduler.set_timesteps(10)
    return scheduler


def found(scheduler, place):
    counts = place if hasattr(scheduler, "step_index") else None
    return float(noise_to_signal(scheduler, scheduler.timesteps[place], counts, CPU))


def measured(scheduler, timestep):
    """Noise over signal in what the scheduler makes of a clean latent."""
    if hasattr(scheduler, "scale_noise"):
        noisy = scheduler.scale_noise(CLEAN, timestep.reshape(1), NOISE)
    else:
        noisy = scheduler.add_noise(CLEAN, NOISE, timestep.reshape(1))
    parts = torch.stack([CLEAN.flatten(), NOISE.flatten()], dim=1).double()
    signal, noise = torch.linalg.lstsq(parts, noisy.flatten().double()).solution
    return float(noise / signal)


@pytest.mark.parametrize("name", sorted(set(KINDS) - TELLS_NOTHING - ADDS_NO_NOISE))
def test_sigma_is_what_the_scheduler_makes_of_a_clean_latent(name):
    scheduler = made(name)
    places = range(2, 8, 2) if name in HALF_STEPS else (1, 4, 8)
    for place in places:
        expected = measured(made(name), scheduler.timesteps[place])
        assert found(scheduler, place) == pytest.approx(expected, rel=1e-3), place


@pytest.mark.parametrize("name", sorted(TELLS_NOTHING))
def test_a_scheduler_that_does_not_say_gives_nan(name):
    scheduler = made(name)
    timesteps = [None, 0.5, torch.tensor(1)]
    assert all(
        noise_to_signal(scheduler, timestep, index, CPU).isnan()
        for timestep in timesteps
        for index in ([None, 1] if hasattr(scheduler, "timesteps") else [None])
    )


@pytest.mark.parametrize("name", ["ScoreSdeVeScheduler", "ScoreSdeVpScheduler"])
def test_a_scheduler_without_a_step_is_refused(name):
    pipe = tiny.stable_diffusion()
    pipe.scheduler = made(name)
    with pytest.raises(ValueError, match=f"{name} has no step"), guided_by(pipe, None):
        pass


@pytest.mark.parametrize("name", sorted(KINDS))
def test_flow_is_known_of_every_scheduler(name):
    assert is_flow(made(name)) == (name in FLOW)


@pytest.mark.parametrize("kind", [KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler])
def test_half_steps_have_the_noise_of_their_own_timestep(kind):
    scheduler = kind()
    scheduler.set_timesteps(10)
    ratios = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    places = range(len(scheduler.timesteps))
    expected = np.interp(scheduler.timesteps, range(1000), ratios)
    np.testing.assert_allclose([found(scheduler, place) for place in places], expected, rtol=2e-2)


@pytest.fixture
def torchsde(monkeypatch):
    """What two schedulers import; they use it in their steps only."""
    module = ModuleType("torchsde")
    module.BrownianInterval = module.BrownianTree = object
    monkeypatch.setitem(sys.modules, "torchsde", module)
    yield
    for name in ("cosine_dpmsolver_multistep", "dpmsolver_sde"):
        sys.modules.pop(f"diffusers.schedulers.scheduling_{name}", None)


@pytest.mark.parametrize(
    ("module", "name", "settings"),
    [
        ("cosine_dpmsolver_multistep", "CosineDPMSolverMultistepScheduler", {}),
        ("cosine_dpmsolver_multistep", "CosineDPMSolverMultistepScheduler", {"sigma_max": 0.9}),
        ("dpmsolver_sde", "DPMSolverSDEScheduler", {}),
    ],
)
def test_schedulers_of_random_paths(torchsde, module, name, settings):
    kind = getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{module}"), name)
    scheduler = kind(**settings)
    scheduler.set_timesteps(10)
    assert not is_flow(scheduler)
    for place in (0, 2, 6):
        expected = measured(scheduler, scheduler.timesteps[place])
        assert found(scheduler, place) == pytest.approx(expected, rel=1e-3)
    if name == "DPMSolverSDEScheduler":
        ratios = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
        halfway = np.interp(float(scheduler.timesteps[3]), range(1000), ratios)
        assert found(scheduler, 3) == pytest.approx(halfway, rel=2e-2)


@pytest.mark.parametrize("place", [1, 4, 8])
def test_ipndm_is_observed_as_what_it_is(place):
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(place)
    timestep = scheduler.timesteps[place]
    sigma = noise_to_signal(scheduler, timestep, place, CPU)

    def parts(angle):
        return torch.cos(angle), torch.sin(angle)

    signal, noise = parts(torch.atan(sigma))
    sample, velocity = signal * CLEAN + noise * NOISE, signal * NOISE - noise * CLEAN
    torch.testing.assert_close(clean_latent(scheduler, velocity, sample, sigma), CLEAN)

    # Its own step then takes a perfect network's answer to the next angle.
    result = scheduler.step(velocity, timestep, sample).prev_sample
    signal, noise = parts([*scheduler.timesteps.tolist(), 0.0][place + 1] * torch.tensor(np.pi) / 2)
    torch.testing.assert_close(result, signal * CLEAN + noise * NOISE, rtol=1e-3, atol=1e-3)


def test_sigmas_of_ipndm_in_a_pipeline():
    pipe = tiny.stable_diffusion()
    pipe.scheduler = IPNDMScheduler()
    with guided_by(pipe, None) as trace:
        tiny.run(pipe)
    expected = np.tan(trace.steps.timestep * np.pi / 2)
    np.testing.assert_allclose(trace.steps.sigma[1:], expected[1:], rtol=1e-4)
    assert trace.steps.sigma[0] == np.inf


@pytest.mark.parametrize("towards_data", [False, True])
def test_a_flow_may_point_either_way(towards_data):
    name = "MiniMaxH3Scheduler" if towards_data else "FlowMatchEulerDiscreteScheduler"
    scheduler = made(name)
    share = float(scheduler.sigmas[4])
    sample = (1 - share) * CLEAN + share * NOISE
    velocity = (CLEAN - NOISE) if towards_data else (NOISE - CLEAN)
    sigma = noise_to_signal(scheduler, scheduler.timesteps[4], 4, CPU)
    torch.testing.assert_close(clean_latent(scheduler, velocity, sample, sigma), CLEAN)


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_clean_latent_of_a_preconditioned_network(kind, prediction):
    scheduler = kind(prediction_type=prediction)
    scheduler.set_timesteps(10)
    sigma = noise_to_signal(scheduler, scheduler.timesteps[3], 3, CPU)
    sample = CLEAN + sigma * NOISE
    zero = scheduler.precondition_outputs(sample, torch.zeros_like(sample), sigma)
    slope = scheduler.precondition_outputs(sample, torch.ones_like(sample), sigma) - zero
    found = clean_latent(scheduler, (CLEAN - zero) / slope, sample, sigma)
    torch.testing.assert_close(found, CLEAN, rtol=1e-3, atol=1e-3)


def test_wuerstchens_steps_count_by_time():
    scheduler = DDPMWuerstchenScheduler()
    scheduler.set_timesteps(10)
    times = scheduler.timesteps[3].expand(4)  # as its pipeline gives them, one per row
    assert float(noise_to_signal(scheduler, times, None, CPU)) == pytest.approx(
        measured(scheduler, scheduler.timesteps[3])
    )


class Distilled(FlowMatchEulerDiscreteScheduler):
    """As users derive one, to fix its sigmas."""


class Renamed(Distilled):
    """Another step further."""


class Own(SchedulerMixin, ConfigMixin):
    """Somebody's own flow scheduler, without an ancestor in diffusers."""

    @register_to_config
    def __init__(self, shift: float = 1.0) -> None:
        self.sigmas = torch.linspace(1, 0, 11)
        self.timesteps = self.sigmas[:-1] * 1000


class OwnOfAnother(EulerDiscreteScheduler):
    """Flow matching made of a scheduler that has another schedule, too."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.sigmas = torch.linspace(1, 0, 11)

    def scale_noise(self, sample, timestep, noise):
        raise NotImplementedError


class Exploding(SchedulerMixin, ConfigMixin):
    """Somebody's own scheduler that adds little noise."""

    @register_to_config
    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 0.9) -> None:
        self.sigmas = torch.linspace(sigma_max, sigma_min, 10)


@pytest.mark.parametrize("kind", [Distilled, Renamed, Own, OwnOfAnother])
def test_flow_under_another_name_is_flow(kind):
    assert is_flow(kind())


class Named(DDIMScheduler):
    """Derived, and not for flows."""


@pytest.mark.parametrize("kind", [Named, Exploding, EulerDiscreteScheduler])
def test_others_under_another_name_are_not(kind):
    assert not is_flow(kind())


@pytest.mark.parametrize("kind", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
def test_flow_sigmas_of_a_scheduler_for_both(kind):
    scheduler = kind(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    scheduler.set_timesteps(10)
    expected = measured(scheduler, scheduler.timesteps[4])
    assert found(scheduler, 4) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", [Distilled, Renamed])
def test_an_interval_means_the_same_steps_under_another_name(kind):
    guided = []
    for each in (FlowMatchEulerDiscreteScheduler, kind):
        pipe = tiny.stable_diffusion_3()
        pipe.scheduler = each.from_config(pipe.scheduler.config)
        with applied(pipe, parse("interval:0.6-5.42"), guidance_scale=5.0) as trace:
            tiny.run(pipe)
        guided.append((trace.steps.guided.tolist(), trace.steps.sigma.tolist()))
    assert guided[0] == guided[1]
    assert len(set(guided[0][0])) == 2


class Silent(DDIMScheduler):
    """Steps as DDIM does and says nothing of its noise."""

    def __getattribute__(self, name):
        if name == "alphas_cumprod" and sys._getframe(1).f_globals["__name__"].startswith("sdb"):
            raise AttributeError(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("variant", ["interval:0.6-5.42", "adaptive:0.9"])
def test_methods_that_decide_by_noise_are_refused_without_it(variant):
    pipe = tiny.stable_diffusion(Silent)
    refused = pytest.raises(Unsupported, match="Silent does not say how noisy its steps are")
    with refused, applied(pipe, parse(variant), guidance_scale=7.5):
        tiny.run(pipe)


@pytest.mark.parametrize("variant", ["cfg", "last:50%", "cached:2"])
def test_others_run_and_their_sigmas_are_unknown(variant):
    pipe = tiny.stable_diffusion(Silent)
    with applied(pipe, parse(variant), guidance_scale=7.5) as trace:
        tiny.run(pipe)
    assert trace.steps.sigma.isna().all()


def test_listed_shares_of_data_are_turned_into_noise():
    """Mochi's scheduler lists them, and its network predicts the velocity towards the data."""

    def sigmas(**settings):
        pipe = tiny.stable_diffusion_3()
        config = dict(pipe.scheduler.config) | settings
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        with guided_by(pipe, None) as trace:
            tiny.run(pipe)
        return trace.steps["sigma"].tolist()

    assert sigmas(invert_sigmas=True)[1:3] == pytest.approx(sigmas()[1:3], rel=0.01)
    assert sigmas(invert_sigmas=True)[0] == float("inf")
