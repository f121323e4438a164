"""Two steps as one: sums by hand, the stock scheduler, and a teacher that knows the data."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from sdbench.distill.captions import drawn_from
from sdbench.distill.halved_trajectories import HalvedTrajectories
from sdbench.distill.halving import (
    PREDICTIONS,
    Level,
    clean,
    ddim_step,
    joining,
    level,
    noise,
    require_halvable,
)
from sdbench.models.pipeline import denoiser_of
from sdbench.variants.hooks import call_replaced
from tests import tiny

SCALE = 7.5
ZERO_SNR = {
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": True,
}
"""Of mini-sd's scheduler: the first latent is noise alone, the last one clean."""


def scheduler(**changes):
    return tiny.stable_diffusion(**ZERO_SNR | changes).scheduler


@pytest.mark.parametrize(
    ("at", "to", "x", "v"),
    [
        # Half way: x = (0.5 - 0.75) / (0.8 - 0.45), v = (0.6 - x) / 0.8.
        (Level(0.6, 0.8), Level(0.8, 0.6), -0.25 / 0.35, (0.6 + 0.25 / 0.35) / 0.8),
        # From noise alone: x = (0.5 - 0.8) / 0.6, and v is -x.
        (Level(0.0, 1.0), Level(0.6, 0.8), -0.5, 0.5),
        # To a clean latent: x is that latent, v = (0.6 - 0.5) / 0.8.
        (Level(0.6, 0.8), Level(1.0, 0.0), 0.5, 0.125),
        # From noise alone to a clean latent.
        (Level(0.0, 1.0), Level(1.0, 0.0), 0.5, -0.5),
    ],
    ids=["between", "terminal", "last", "one step"],
)
def test_the_joining_prediction_is_that_of_a_sum_by_hand(at, to, x, v):
    z, end = torch.tensor([1.0]), torch.tensor([0.5])
    predicted = {"v_prediction": v, "sample": x}
    if at.alpha:
        predicted["epsilon"] = (1 - at.alpha * x) / at.sigma
    for kind, value in predicted.items():
        torch.testing.assert_close(joining(kind, z, at, end, to), torch.tensor([value]))


@pytest.mark.parametrize("num_steps", [4, 8, 12])
def test_the_stock_scheduler_ends_where_two_steps_do(num_steps):
    """From noise alone to a clean latent, where the number of steps divides 1,000 and not."""
    stock = scheduler()
    stock.set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(0)
    for timestep in stock.timesteps.tolist():
        z, end = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
        to = timestep - 1000 // num_steps
        joined = joining("v_prediction", z, level(stock, timestep), end, level(stock, to))
        assert torch.isfinite(joined).all()
        found = stock.step(joined, timestep, z).prev_sample
        torch.testing.assert_close(found, end, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_step_is_that_of_the_stock_scheduler(kind):
    stock = scheduler(prediction_type=kind, rescale_betas_zero_snr=False)
    stock.set_timesteps(8)
    z, prediction = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for timestep in stock.timesteps.tolist():
        at, to = level(stock, timestep), level(stock, timestep - 125)
        expected = stock.step(prediction, timestep, z).prev_sample
        found = ddim_step(kind, prediction, z, at, to)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        x, epsilon = clean(kind, prediction, z, at), noise(kind, prediction, z, at)
        torch.testing.assert_close(at.alpha * x + at.sigma * epsilon, z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: EulerDiscreteScheduler(), "DDIM alone; the pipeline has EulerDiscreteScheduler"),
        (lambda: DDIMScheduler(clip_sample=True), "without clip_sample, which the scheduler has"),
        (lambda: DDIMScheduler(clip_sample=False, thresholding=True), "without thresholding"),
        (
            lambda: DDIMScheduler(clip_sample=False, prediction_type="flow"),
            "unknown prediction_type 'flow'; there are: epsilon, v_prediction, sample",
        ),
    ],
)
def test_another_kind_of_step_is_refused(made, message):
    with pytest.raises(ValueError, match=message):
        require_halvable(made())


def halved(pipe, **changes):
    settings = {"guidance_scale": SCALE, "num_steps": 4, "rows": 2, "seed": [0, 0, 0]} | changes
    return HalvedTrajectories(pipe, drawn_from(tiny.PROMPTS), **settings)


def knowing(pipe, x):
    """Have a denoiser predict v of data that are one point, which no step can miss."""

    def wrap(original):
        def call(sample, timestep, *args, **kwargs):
            at = level(pipe.scheduler, int(timestep))
            epsilon = (sample - at.alpha * x) / at.sigma
            return (at.alpha * epsilon - at.sigma * x,)

        return call

    return call_replaced(denoiser_of(pipe), wrap)


@pytest.mark.parametrize("is_guided", [False, True], ids=["student", "guided"])
@pytest.mark.parametrize("num_steps", [4, 6])
def test_a_student_that_equals_the_teacher_has_nothing_to_learn_of_exact_data(is_guided, num_steps):
    pipe = tiny.stable_diffusion(**ZERO_SNR)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    source = halved(pipe, is_guided=is_guided, num_steps=num_steps)
    with knowing(pipe, x):
        for step in range(6):
            examples = source.at(step, teaching=torch.no_grad)
            for row in range(2):
                z, timestep = examples.args[0][row], int(examples.args[1][row])
                (own,) = pipe.unet(z[None], timestep)
                torch.testing.assert_close(examples.target[row], own[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("is_guided", [False, True], ids=["student", "guided"])
def test_the_loop_goes_through_the_latents_of_the_teachers_own_loop(is_guided):
    """With 4 steps of 8 of the teacher's, whose timesteps all are on its own list."""
    pipe = tiny.stable_diffusion(**ZERO_SNR)
    source = halved(pipe, is_guided=is_guided)
    source.at(0, teaching=torch.no_grad)
    whole = source._steps[:4]  # the first trajectory of the round, in the order of its steps

    latents = []
    guidance = SCALE if is_guided else 1.0
    prompts, generators = prompts_and_noise(source)
    pipe(
        prompts,
        generator=generators,
        num_inference_steps=8,
        guidance_scale=guidance,
        output_type="latent",
        callback_on_step_end=lambda pipe, step, timestep, kept: (
            latents.append((int(timestep), kept["latents"].clone())) or kept
        ),
    )
    own = dict(zip([timestep for timestep, _ in latents[1:]], latents, strict=False))
    assert [int(examples.args[1]) for examples in whole] == [999, 749, 499, 249]
    for examples in whole[1:]:
        _, expected = own[int(examples.args[1])]
        torch.testing.assert_close(examples.args[0], expected, rtol=1e-3, atol=1e-3)


def test_a_last_step_that_the_teacher_takes_at_once_is_its_own_prediction():
    """With leading spacing the last of 4 steps begins at 1, and so does the last of 8."""
    pipe = tiny.stable_diffusion_xl()
    pipe.scheduler = DDIMScheduler.from_config(tiny.scheduler().config, timestep_spacing="leading")
    texts = {name: rows for name, rows in pipe.call.items() if "embeds" in name} | {"prompt": None}
    source = halved(pipe, arguments=texts | {"height": 16, "width": 16})
    source.at(0, teaching=torch.no_grad)
    first, *_, last = source._steps[:4]
    assert [int(examples.args[1]) for examples in (first, last)] == [751, 1]
    for examples, is_own in ((first, False), (last, True)):
        with torch.no_grad():
            own = pipe.unet(*examples.args, **examples.kwargs)[0]
        assert torch.allclose(examples.cond, own, atol=1e-5) == is_own


def prompts_and_noise(source):
    """What the first trajectory of a source was drawn from."""
    rng = np.random.default_rng([*source.seed, 0, 0])
    prompts = list(source.captions(rng, source.rows))
    seeds = rng.integers(2**62, size=source.rows)
    return prompts, [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
