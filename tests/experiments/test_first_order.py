import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

import sdbench
from sdbench.experiments.adjoint import adjoints, coefficients, places, step_coefficients
from sdbench.experiments.branch_choice import BranchChoice
from sdbench.experiments.first_order import Follower, _signs
from sdbench.experiments.sensitivity import sweep
from sdbench.instruments.memory import AllocatorTrace
from sdbench.instruments.metrics.lpips import lpips, lpips_features
from sdbench.instruments.quality import METRICS
from sdbench.models.pipeline import schedulers_of
from sdbench.study.generation import Generation
from sdbench.variants.guidance import guided_by
from sdbench.variants.hooks import wrapped
from sdbench.variants.recorded import Recorder
from sdbench.variants.rows import first_tensor
from sdbench.variants.schedule import GuidanceSchedule
from tests import alexnet, tiny

SIDE = 64
GENERATION = Generation(
    model="tiny",
    prompts=tiny.PROMPTS,
    seeds=[0],
    num_steps=4,
    guidance_scale=7.5,
    height=SIDE,
    width=SIDE,
)
SCHEDULERS = [
    DDIMScheduler,
    EulerDiscreteScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    PNDMScheduler,
    HeunDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
]


@pytest.fixture(scope="module", autouse=True)
def network():
    with alexnet.made_up():
        yield


@pytest.fixture(scope="module")
def pipe():
    return tiny.stable_diffusion()


def follower(pipe, generation=GENERATION, **how):
    return Follower(pipe, generation, tuple(generation.pairs), metrics=["lpips"], **how)


class LinearStep:
    """A step of a denoiser that says M z."""

    def __init__(self, matrix):
        self.matrix = matrix

    def pulled_back(self, cotangents):
        return [(own.flatten() @ self.matrix).reshape(own.shape) for own in cotangents]


def linear_loop(scheduler, matrix, first, added):
    """The last latents of a loop whose denoiser says M z, to which something is added."""
    latents = first
    for step, timestep in enumerate(scheduler.timesteps):
        said = (matrix @ latents.flatten()).reshape(latents.shape) + added[step]
        latents = first_tensor(scheduler.step(said, timestep, latents, return_dict=False))
    return latents


def prepared(kind, steps=6):
    scheduler = kind(**({"clip_sample": False} if kind is DDIMScheduler else {}))
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_way_back_through_a_linear_denoiser_is_its_closed_form(kind):
    """The oracle is autograd through the scheduler's own loop; the latents are four numbers."""
    torch.manual_seed(0)
    matrix = 0.3 * torch.randn(4, 4)
    first, vector = torch.randn(2, 1, 4, 1, 1)
    timesteps = prepared(kind).timesteps
    added = torch.zeros(len(timesteps), 1, 4, 1, 1, requires_grad=True)
    last = linear_loop(prepared(kind), matrix, first, added)
    (expected,) = torch.autograd.grad((last * vector).sum(), added)

    found = step_coefficients(prepared(kind), list(timesteps), first)
    steps = [LinearStep(matrix)] * len(timesteps)
    given = torch.stack([own[0] for own in adjoints(steps, found, [vector], 1)])
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_the_mean_over_all_signs_is_the_squared_change():
    """E[q^2] = |J d|^2, of a linear loop whose features are its last latents."""
    torch.manual_seed(0)
    matrix = 0.3 * torch.randn(4, 4)
    first, change = torch.randn(2, 1, 4, 1, 1)
    scheduler = prepared(DDIMScheduler)
    found = step_coefficients(prepared(DDIMScheduler), list(scheduler.timesteps), first)
    signs = [
        torch.tensor(own).reshape(1, 4, 1, 1) for own in itertools.product((-1.0, 1), repeat=4)
    ]
    given = adjoints([LinearStep(matrix)] * 6, found, signs, 1)

    plain = torch.zeros(6, 1, 4, 1, 1)
    base = linear_loop(prepared(DDIMScheduler), matrix, first, plain)
    for step in range(6):
        added = plain.clone()
        added[step] = change
        moved = linear_loop(prepared(DDIMScheduler), matrix, first, added) - base
        estimate = np.mean([float((own * change).sum()) ** 2 for own in given[step]])
        assert estimate == pytest.approx(float(moved.square().sum()), rel=1e-3)


def recorded(pipe):
    recorder = Recorder(pipe)
    with recorder.watching(), guided_by(pipe, GuidanceSchedule.full, listeners=[recorder]):
        tiny.run(pipe)
    return recorder


def last_latents(pipe, changes):
    """The latents of a call in which something is added to what reaches the scheduler."""
    steps = iter(changes)

    def adding(original):
        def step(said, *args, **kwargs):
            return original(said + next(steps), *args, **kwargs)

        return step

    with wrapped(schedulers_of(pipe)[0], "step", adding):
        return tiny.run(pipe)


@pytest.mark.parametrize(
    "pipe",
    [
        tiny.stable_diffusion(),
        tiny.stable_diffusion(DPMSolverMultistepScheduler),
        tiny.stable_diffusion(EulerDiscreteScheduler),
        tiny.stable_diffusion(DDIMScheduler, prediction_type="v_prediction"),
        tiny.stable_diffusion_xl(),
        tiny.stable_diffusion_3(),
        tiny.flux(),
    ],
    ids=["sd", "dpm", "euler", "v", "sdxl", "sd3", "flux"],
)
def test_the_way_back_is_that_of_finite_differences(pipe):
    """A change of what reaches the scheduler, in a stock pipeline, and what it does at the end."""
    recorder = recorded(pipe)
    torch.manual_seed(0)
    vector = torch.randn_like(recorder.final)
    given = adjoints(recorder.steps, coefficients(recorder), [vector], 1)
    for index, step in enumerate(recorder.steps):
        change = 1e-2 * torch.randn_like(step.sample)
        up, down = (
            last_latents(pipe, [sign * change * (own == index) for own in range(len(given))])
            for sign in (1, -1)
        )
        expected = float((vector * (up - down)).sum()) / 2
        found = float((given[index][0] * change).sum())
        assert found == pytest.approx(expected, rel=0.02, abs=2e-4 * float(vector.norm()))


def test_a_run_of_steps_shares_the_one_in_its_middle():
    assert places(7, 1) == [0, 1, 2, 3, 4, 5, 6]
    assert places(7, 3) == [0, 2, 2, 2, 5, 5, 5]
    assert places(4, 9) == [0, 0, 0, 0]


def test_features_have_lpips_for_their_squared_distance_and_a_finite_slope():
    torch.manual_seed(0)
    images = torch.rand(2, 3, SIDE, SIDE, requires_grad=True)
    others = torch.rand(2, 3, SIDE, SIDE)
    features = lpips_features(images)
    distance = (features - lpips_features(others)).square().sum(dim=1)
    torch.testing.assert_close(distance, lpips(images, others))
    (slope,) = torch.autograd.grad(lpips_features(torch.zeros_like(images) + images).sum(), images)
    assert slope.isfinite().all()


def pooled(images):
    """Few features, so that many probes cost little."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def test_the_mean_of_probes_is_the_change_of_a_small_guidance(pipe, monkeypatch):
    """Near w = 1 dropping guidance is a small change, of which the first order is all."""
    monkeypatch.setitem(METRICS, "lpips", replace(METRICS["lpips"], features=pooled))
    small = replace(GENERATION, guidance_scale=1.05)
    effects = follower(pipe, small, every=1, probes=32).effects
    images = {mask: image(pipe, mask, small.guidance_scale) for mask in ("1111", "0111", "0011")}
    for mask, dropped in (("0111", [0]), ("0011", [0, 1])):
        change = pooled(images[mask]) - pooled(images["1111"])
        expected = change.square().sum(dim=1).numpy()
        np.testing.assert_allclose(effects.without("lpips", dropped), expected, rtol=0.5)


def image(pipe, mask, scale):
    call = {"prompt": tiny.PROMPTS, "output_type": "pt", "height": SIDE, "width": SIDE}
    noise = [torch.Generator().manual_seed(0) for _ in tiny.PROMPTS]
    schedule = GuidanceSchedule.from_mask(letter == "1" for letter in mask)
    with guided_by(pipe, schedule):
        return pipe(**call, generator=noise, num_inference_steps=4, guidance_scale=scale).images


def test_an_image_is_estimated_alone_as_in_a_batch(pipe):
    together = follower(pipe).effects.signed["lpips"]
    alone = replace(GENERATION, prompts=tiny.PROMPTS[1:])
    np.testing.assert_allclose(
        follower(pipe, alone).effects.signed["lpips"][0], together[1], rtol=1e-3, atol=1e-6
    )
    assert not torch.equal(_signs(GENERATION.pairs[0], 0, 50), _signs(GENERATION.pairs[0], 1, 50))


def test_every_row_is_counted_and_the_pipeline_is_as_before(pipe):
    with tiny.counted_rows(pipe) as counted:
        effects = follower(pipe, every=2, probes=3).effects
    assert sum(counted) == 2 * (8 + 2 * 2)  # the trajectory, and two of its steps again
    assert effects.rows == 8
    assert effects.rows_back == [14, 0, 14, 0]  # evaluated again, and thrice followed back as two
    assert effects.cost == 36
    assert torch.is_grad_enabled()
    assert all(own.requires_grad for own in pipe.unet.parameters())


def test_memory_grows_by_latents_and_not_by_graphs(pipe):
    def peak(steps):
        with AllocatorTrace() as trace:
            assert follower(pipe, replace(GENERATION, num_steps=steps)).effects.rows == 2 * steps
        return trace.peak_bytes

    latents_bytes = 4 * 2 * 4 * (SIDE // 2) ** 2
    assert peak(10) - peak(4) < 6 * 20 * latents_bytes < peak(4)


def test_a_sweep_holds_the_estimate_of_every_step(pipe, tmp_path):
    swept = sweep(pipe, GENERATION, BranchChoice("estimate"), tmp_path / "out").sensitivity
    estimated = swept[swept["kind"] == "estimate"].sort_values(["prompt_id", "start"])
    assert estimated["start"].tolist() == [0, 1, 2, 3] * 2
    assert estimated["mask"].tolist()[:2] == ["0111", "1011"]
    assert (swept[swept["kind"] == "baseline"]["lpips"] == 0).all()
    assert swept.groupby("prompt_id")["rows"].sum().tolist() == [follower(pipe).effects.cost] * 2
    expected = np.square(follower(pipe).effects.signed["lpips"]).mean(axis=1)
    np.testing.assert_allclose(estimated["lpips"].to_numpy(float), expected.flatten())


def test_the_estimate_is_nearly_the_exact_curve(pipe):
    """Of the steps whose change the eight bits of a pixel do not hide."""
    call = {"num_steps": 8, "guidance_scale": 7.5, "height": SIDE, "width": SIDE}
    curves = []
    for kind in ("single", "estimate"):
        table = sdbench.sensitivity(pipe, tiny.PROMPTS, [0, 1], kind=kind, **call)
        table = table[table["kind"] == kind]
        curves.append(table.groupby("start")["lpips"].mean().to_numpy(float)[:3])
    assert (np.abs(np.log(curves[1] / curves[0])) < np.log(4)).all()


@pytest.mark.parametrize(
    ("kind", "settings", "arguments", "message"),
    [
        (EulerAncestralDiscreteScheduler, {}, {}, "EulerAncestralDiscreteScheduler draws noise"),
        (DDIMScheduler, {}, {"eta": 1.0}, "DDIMScheduler draws noise"),
        (DDIMScheduler, {"clip_sample": True}, {}, "or its step is not linear"),
        (DDIMScheduler, {}, {"guidance_rescale": 0.7}, r"is not u \+ w \(c - u\)"),
    ],
)
def test_a_loop_that_cannot_be_followed_back_is_refused(kind, settings, arguments, message):
    pipe = tiny.stable_diffusion(kind, **settings)
    with pytest.raises(ValueError, match=f"cannot be followed backwards: .*{message}"):
        _ = follower(pipe, replace(GENERATION, arguments=arguments)).effects
    assert torch.is_grad_enabled()


def test_a_metric_without_features_and_growth_are_refused_before_the_folder(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"'psnr' is no squared distance.*there are: lpips"):
        sweep(pipe, GENERATION, BranchChoice("estimate"), tmp_path / "out", metrics=["psnr"])
    with pytest.raises(ValueError, match="has no growth to keep"):
        sweep(pipe, GENERATION, BranchChoice("estimate", growth=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert METRICS["lpips"].features is lpips_features
