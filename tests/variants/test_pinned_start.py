"""Loops of any length begin where the baseline begins, and each step ends where the next begins."""

from contextlib import nullcontext
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

from sdbench.study import check
from sdbench.study.call import Call, generate
from sdbench.study.estimate import estimate
from sdbench.study.runner import run
from sdbench.study.study import Study
from sdbench.variants.adapters import applied
from sdbench.variants.grammar import parse
from sdbench.variants.guidance import guided_by
from sdbench.variants.noise import is_flow
from sdbench.variants.pinned_start import pinned_start
from sdbench.variants.trace import Unsupported
from tests import families, tiny
from tests.families import schedulers

LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
LENGTHS = (1, 7, 25, 37, 48, 49, 60, 100)


def named(name, **settings):
    """A scheduler with the noise of Stable Diffusion 1.x."""
    config = dict(tiny.scheduler().config)
    config.pop("_use_default_values")  # those would not be handed on
    return schedulers.DIFFUSION[name](config | settings)


def listed(scheduler, steps, *, baseline=50):
    """Timesteps and sigmas of a scheduler whose baseline has 50 steps."""
    with pinned_start(SimpleNamespace(scheduler=scheduler), num_steps=baseline):
        scheduler.set_timesteps(steps)
    sigmas = getattr(scheduler, "sigmas", torch.zeros(0))
    return scheduler.timesteps.double().numpy(), torch.as_tensor(sigmas).double().numpy()


@pytest.mark.parametrize("name", schedulers.DIFFUSION)
@pytest.mark.parametrize(
    "settings", [LEADING, {"timestep_spacing": "trailing"}], ids=lambda s: s["timestep_spacing"]
)
def test_every_scheduler_begins_where_the_baseline_begins(name, settings):
    timesteps, sigmas = listed(named(name, **settings), 50)
    for steps in LENGTHS:
        if name == "TCD" and steps > 50:
            continue  # it has no more than 50
        stock = named(name, **settings)
        stock.set_timesteps(steps)
        own_timesteps, own_sigmas = listed(named(name, **settings), steps)

        assert own_timesteps[0] == timesteps[0]
        assert len(own_timesteps) == len(stock.timesteps)
        assert own_timesteps[-1] == stock.timesteps[-1] or steps == 1
        assert (np.diff(own_timesteps) <= 0).all()
        if len(sigmas):
            assert own_sigmas[0] == pytest.approx(sigmas[0], rel=1e-6)
            assert own_sigmas[-1] == float(stock.sigmas[-1])
            assert (np.diff(own_sigmas) <= 0).all()


def steps_of(levels):
    """Steps of a list as shares of its length."""
    return np.diff(levels) / (levels[-1] - levels[0])


@pytest.mark.parametrize("rule", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("name", ["Euler", "Heun", "LMS", "DPM++ 2M", "UniPC", "DEIS"])
def test_sigmas_of_other_spacings_keep_their_rule(name, rule):
    _, sigmas = listed(named(name, **LEADING, **{rule: True}), 50)
    _, fewer = listed(named(name, **LEADING, **{rule: True}), 48)
    assert fewer[0] == pytest.approx(sigmas[0], rel=1e-6)

    # On the scale of the rule the stock list is stretched: its steps keep their proportions.
    stock = named(name, **LEADING, **{rule: True})
    stock.set_timesteps(48)
    own = stock.sigmas.double().numpy()
    scales = {"use_karras_sigmas": lambda sigma: sigma ** (1 / 7), "use_exponential_sigmas": np.log}
    there = scales.get(rule, lambda sigma: sigma)
    assert steps_of(there(fewer[fewer > 0])) == pytest.approx(
        steps_of(there(own[own > 0])), abs=1e-4
    )


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM++ 2M"])
def test_the_list_is_what_a_scheduler_makes_of_the_same_timesteps(name):
    # These take a list of their own, which is the oracle.
    timesteps, sigmas = listed(named(name, **LEADING), 48)
    own = named(name, **LEADING)
    own.set_timesteps(timesteps=np.unique(timesteps)[::-1].astype(int).tolist())
    assert own.timesteps.double().numpy() == pytest.approx(timesteps)
    assert own.sigmas.double().numpy() == pytest.approx(sigmas, rel=1e-5)


def spread(scheduler, steps, *, pinned=True):
    """Standard deviation of 4,000 samples of a Gaussian of 0.5, denoised by its exact model."""
    pipe = SimpleNamespace(scheduler=scheduler)
    abar = scheduler.alphas_cumprod.double()
    with pinned_start(pipe, num_steps=50) if pinned else nullcontext():
        scheduler.set_timesteps(steps)
        latents = torch.randn(4000, 1, 1, 1, dtype=torch.float64, generator=torch.manual_seed(0))
        for timestep in scheduler.timesteps:
            signal = abar[int(timestep)]
            noise = 1 - signal
            epsilon = latents * noise.sqrt() / (signal * 0.25 + noise)
            latents = scheduler.step(epsilon, timestep, latents).prev_sample
    return float(latents.std())


DENOISED = {
    "DDIM leading": lambda: named("DDIM", **LEADING),
    "DDIM trailing": lambda: named("DDIM", timestep_spacing="trailing"),
    "PNDM leading": lambda: named("PNDM", **LEADING),
    "DPM++ 2M": lambda: named("DPM++ 2M", **LEADING),
    "UniPC": lambda: named("UniPC", **LEADING),
}


@pytest.mark.parametrize("name", DENOISED)
def test_on_exact_data_one_step_fewer_changes_next_to_nothing(name):
    whole = spread(DENOISED[name](), 50)
    near = [spread(DENOISED[name](), steps) for steps in (47, 48, 49)]
    assert near == pytest.approx([whole] * 3, rel=0.004)


def test_a_scheduler_without_numbered_timesteps_keeps_its_steps():
    scheduler = diffusers.DDPMWuerstchenScheduler()
    with pinned_start(SimpleNamespace(scheduler=scheduler), num_steps=8):
        scheduler.set_timesteps(5)
        latents = torch.ones(1, 4, 2, 2)
        for timestep in scheduler.timesteps[:-1]:
            time = timestep.expand(1)
            latents = scheduler.step(latents * 0.1, time, latents).prev_sample
    assert scheduler.timesteps[0] == 1
    assert latents.isfinite().all()


def test_stock_ddim_steps_past_its_grid():
    # What the test above is held against: trailing timesteps are 20.8 apart, DDIM moves by 20.
    stock = spread(named("DDIM", timestep_spacing="trailing"), 48, pinned=False)
    assert abs(stock / spread(named("DDIM", timestep_spacing="trailing"), 50) - 1) > 0.02


def test_schedulers_that_cannot_are_refused_with_the_reason():
    runge_kutta = diffusers.PNDMScheduler.from_config(tiny.scheduler().config, **LEADING)
    with pytest.raises(Unsupported, match=r"PNDMScheduler begins .*prk_timesteps"):
        listed(runge_kutta, 48)
    with pytest.raises(Unsupported, match="from where so many do not fit"):
        listed(named("DDIM", **LEADING), 1000)


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of diffusers with numpy 2
def test_points_between_the_listed_ones_are_a_list_that_would_not_fit():
    midpoints = diffusers.KDPM2DiscreteScheduler.from_config(tiny.scheduler().config, **LEADING)
    with pytest.raises(Unsupported, match="at timestep 941, not at 981, and keeps a list"):
        listed(midpoints, 48)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        (diffusers.DDIMInverseScheduler, {}, "goes from data to noise"),
        (diffusers.DPMSolverMultistepInverseScheduler, {}, "goes from data to noise"),
        (
            diffusers.EulerDiscreteScheduler,
            {"timestep_type": "continuous", "prediction_type": "v_prediction"},
            "timesteps are not those of its sigmas",
        ),
        (
            diffusers.EulerDiscreteScheduler,
            {"interpolation_type": "log_linear"},
            "timesteps are not those of its sigmas",
        ),
    ],
)
def test_lists_of_another_kind_are_refused(kind, settings, reason):
    config = tiny.scheduler().config | {"trained_betas": None}
    with pytest.raises(Unsupported, match=reason):
        listed(kind.from_config(config, **LEADING, **settings), 48)


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of diffusers with numpy 2
def test_what_is_tried_before_a_study_begins_anywhere():
    # Of this scheduler no list can be stretched, and the trial of an accelerator has two steps.
    pipe = tiny.stable_diffusion(diffusers.KDPM2DiscreteScheduler, **LEADING)
    check._try_accelerator(pipe, call("deepcache:2", num_steps=7))
    study = call("cfg", num_steps=7, repeats=1, metrics=()).generation
    assert estimate(study, pipe=pipe, steps=2).calls == 2  # a warm-up and a repeat


def call(text, **changes):
    settings = {"model": "tiny", "num_steps": 8, "guidance_scale": 5.0} | changes
    study = Study(variants=["cfg"], prompts=tiny.PROMPTS, seeds=[0], **settings)
    return Call(study, parse(text), tuple(study.pairs))


def test_as_many_steps_as_the_baseline_are_the_baseline_bitwise():
    pipe = tiny.stable_diffusion()
    expected = generate(pipe, call("cfg"), output="latent")
    assert torch.equal(generate(pipe, call("steps:8"), output="latent"), expected)


def test_stock_steps_are_those_of_diffusers_bitwise():
    pipe = tiny.stable_diffusion()
    plain = generate(pipe, call("cfg", num_steps=7), output="latent")
    assert torch.equal(generate(pipe, call("steps:7,stock"), output="latent"), plain)
    assert not torch.equal(generate(pipe, call("steps:7"), output="latent"), plain)


def test_a_loop_beside_it_is_as_before():
    pipe = tiny.stable_diffusion()
    before = generate(pipe, call("cfg", num_steps=7), output="latent")
    with (
        applied(pipe, parse("steps:7"), guidance_scale=5.0, num_steps=8),
        pytest.raises(ValueError, match="prompt"),
    ):
        pipe(None, num_inference_steps=7)
    generate(pipe, call("steps:7"), output="latent")
    assert "set_timesteps" not in vars(pipe.scheduler)
    assert pipe.scheduler.num_inference_steps == 7
    assert torch.equal(generate(pipe, call("cfg", num_steps=7), output="latent"), before)


def begun(pipe, steps=None):
    """First timestep and sigma of a pipeline's loop; None where diffusers refuses the scheduler."""
    with guided_by(pipe, None) as trace:
        try:
            tiny.run(pipe)
        except (AssertionError, ValueError):
            return None
    return trace.steps.loc[0, ["timestep", "sigma"]].tolist()


def check_begin(pipe):
    steps = pipe.call["num_inference_steps"]
    whole = begun(pipe)
    with pinned_start(pipe, num_steps=steps):
        pipe.call["num_inference_steps"] = steps - 1
        assert begun(pipe) == (whole and pytest.approx(whole, rel=1e-5))
    pipe.call["num_inference_steps"] = steps
    return whole


# Image-to-image enters the list within, where the number of steps rounds otherwise: see below.
# SDXL's inpainting does so, too: its strength is 0.9999.
PARTS = ("img2img", "sdxl-img2img", "sdxl-inpaint")
WHOLE = [family for family in families.FAMILIES if family not in PARTS]


@pytest.mark.parametrize("family", WHOLE)
def test_every_family_begins_where_its_baseline_begins(family):
    assert check_begin(families.make(family)) is not None


@pytest.mark.slow  # some 250 pairs of loops
@pytest.mark.parametrize("family", WHOLE)
def test_every_family_does_so_under_every_scheduler(family):
    pipe = families.make(family)
    usual = pipe.scheduler
    for make in (schedulers.FLOW if is_flow(usual) else schedulers.DIFFUSION).values():
        pipe.scheduler = make(usual.config)
        check_begin(pipe)


def image_to_image(strength):
    """A pipeline that draws on its own images, since a study cannot give any."""
    pipe = families.FAMILIES["img2img"]()
    stock = type(pipe)
    images = torch.rand(2, 3, 16, 16, generator=torch.manual_seed(0))

    class Redrawn(stock):
        def __call__(self, **arguments):
            return super().__call__(image=images, strength=strength, **arguments)

    pipe.__class__ = Redrawn
    return pipe


@pytest.mark.parametrize(
    ("strength", "num_steps", "supported"), [(0.5, 24, True), (0.3, 37, True), (0.3, 25, False)]
)
def test_image_to_image_is_refused_where_it_enters_elsewhere(strength, num_steps, supported):
    # 0.3 of 50 steps are 15 and enter at 281; of 37 they are 11, at 273, and of 25 they are 7.
    pipe = image_to_image(strength)
    baseline = check._timesteps(pipe, call("cfg", num_steps=50))
    text = f"steps:{num_steps}"
    refused = pytest.raises(Unsupported, match="more than one step away from the baseline")
    with nullcontext() if supported else refused:
        check._require_same_begin(pipe, call(text, num_steps=50), baseline)


def test_the_tables_say_where_every_call_began(tmp_path):
    study = Study(
        model="tiny",
        variants=["cfg", "last:50%", "steps:6", "steps:6,stock"],
        prompts=tiny.PROMPTS,
        seeds=[0],
        num_steps=8,
        guidance_scale=5.0,
        repeats=1,
        metrics=(),
    )
    results = run(study, tmp_path / "study", pipe=tiny.stable_diffusion())
    first = results.steps[results.steps["step"] == 0].set_index("unit")
    runs = results.runs.set_index("unit")
    assert runs["first_timestep"].to_dict() == first["timestep"].to_dict()
    assert runs["first_sigma"].to_dict() == first["sigma"].to_dict()
    assert runs.groupby("variant")["first_timestep"].first().to_dict() == {
        "cfg": 876,
        "last:50%": 876,
        "steps:6": 876,
        "steps:6,stock": 831,
    }
