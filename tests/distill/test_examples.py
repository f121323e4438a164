import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from sdbench.distill.captions import captioned_scenes, drawn_from
from sdbench.distill.examples import Scales, gathered
from sdbench.distill.loss import guided_prediction
from sdbench.distill.noised_images import Images, noised
from sdbench.distill.trajectories import Trajectories
from sdbench.models.pipeline import denoiser_of
from sdbench.variants.rows import first_tensor
from tests import tiny

ROWS, STEPS, SCALE = 2, 3, 4.0
LENGTH = 3 + 2 + 1  # batches of a round: a whole trajectory, half of one (up), a quarter
FAMILIES = {
    "sd": tiny.stable_diffusion,
    "sdxl": tiny.stable_diffusion_xl,
    "sd3": tiny.stable_diffusion_3,
    "flux": tiny.flux,
}


def arguments(pipe):
    """What the tiny pipelines without a text encoder need in place of prompts."""
    if "prompt" in pipe.call:
        return {}
    asked = ("num_inference_steps", "output_type", "guidance_scale", "true_cfg_scale")
    given = {name: value for name, value in pipe.call.items() if name not in asked}
    return (
        given
        | {"prompt": None}
        | ({"negative_prompt": None} if "true_cfg_scale" in pipe.call else {})
    )


def trajectories(pipe, **changes):
    changes.setdefault("arguments", arguments(pipe))
    settings = {
        "scales": Scales(SCALE, SCALE),
        "num_steps": STEPS,
        "rows": ROWS,
        "seed": [0, 0, 0],
    } | changes
    return Trajectories(pipe, drawn_from(tiny.PROMPTS), **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trajectory_gives_conditional_rows_and_what_guidance_makes_of_them(family):
    pipe = FAMILIES[family]()
    given, called = (
        [],
        denoiser_of(pipe).register_forward_pre_hook(
            lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True
        ),
    )
    source = trajectories(pipe)
    batches = [source.at(step, teaching=torch.no_grad) for step in range(LENGTH)]
    called.remove()
    two_calls = len(given) == 2 * LENGTH
    with torch.no_grad():
        for examples in batches:
            assert (
                len(examples.target) == len(first_tensor((examples.args, examples.kwargs))) == ROWS
            )
            mixed = first_tensor(denoiser_of(pipe)(*examples.args, **examples.kwargs))
            # The oracle: the network on what it was given, both halves, at the same step and row.
            for row in range(ROWS):
                sample = first_tensor((examples.args, examples.kwargs))[row]
                found = [
                    guided_prediction(c, u, SCALE)
                    for call in range(0, len(given), 2 if two_calls else 1)
                    for index, (c, u) in enumerate(
                        halves_of(pipe, given[call : call + 2 if two_calls else call + 1])
                    )
                    if torch.equal(first_tensor(given[call])[-ROWS:][index], sample)
                ]
                assert len(found) == 1
                channels = examples.target.shape[1]
                torch.testing.assert_close(
                    examples.target[row], found[0].narrow(0, 0, channels), atol=1e-4, rtol=1e-4
                )
            assert not torch.allclose(mixed.narrow(1, 0, examples.target.shape[1]), examples.target)


def halves_of(pipe, calls):
    """(conditional, unconditional) prediction of every row of one step."""
    outputs = [first_tensor(denoiser_of(pipe)(*args, **kwargs)) for args, kwargs in calls]
    uncond, cond = outputs[0].chunk(2) if len(outputs) == 1 else reversed(outputs)
    return list(zip(cond, uncond, strict=True))


def test_a_batch_depends_on_its_step_alone():
    pipe = tiny.stable_diffusion()
    straight, late = trajectories(pipe), trajectories(pipe)
    for step in range(LENGTH + 2):
        expected = straight.at(step, teaching=torch.no_grad)
    found = late.at(LENGTH + 1, teaching=torch.no_grad)
    assert torch.equal(found.target, expected.target)
    assert torch.equal(found.sigma, expected.sigma)
    other = trajectories(pipe, seed=[0, 0, 1]).at(LENGTH + 1, teaching=torch.no_grad)
    assert not torch.equal(other.target, expected.target)


def test_a_round_is_used_up_once():
    source = trajectories(tiny.stable_diffusion())
    rows = torch.cat([source.at(step, teaching=torch.no_grad).target for step in range(LENGTH)])
    assert len({tuple(row.flatten().tolist()) for row in rows}) == LENGTH * ROWS


def test_the_noisiest_steps_are_taught_more_often_than_the_last():
    source = trajectories(tiny.stable_diffusion())
    sigma = torch.cat([source.at(step, teaching=torch.no_grad).sigma for step in range(LENGTH)])
    _, counts = sigma.unique(return_counts=True)  # from the least noise up
    assert counts.tolist() == [ROWS, 2 * ROWS, 3 * ROWS]


def scenes(rng, count):
    prompts, images = captioned_scenes(rng, count)
    return prompts, images[:, ::4, ::4]  # the tiny autoencoder's 16 pixels


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_images_are_noised_and_guided(family):
    pipe = FAMILIES[family]()
    settings = {"rows": ROWS, "seed": [0], "arguments": arguments(pipe)}
    examples = Images(pipe, scenes, scales=Scales(SCALE, SCALE), **settings).at(
        5, teaching=torch.no_grad
    )
    with torch.no_grad():
        cond = first_tensor(denoiser_of(pipe)(*examples.args, **examples.kwargs))
    assert cond.shape == examples.target.shape
    assert not torch.allclose(cond, examples.target)
    again = Images(pipe, scenes, scales=Scales(1.0 + 1e-6, 1.0 + 1e-6), **settings).at(
        5, teaching=torch.no_grad
    )
    torch.testing.assert_close(
        again.target, cond, atol=1e-4, rtol=1e-4
    )  # w = 1 is the conditional prediction


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(), FlowMatchEulerDiscreteScheduler()], ids=["ddim", "flow"]
)
def test_noise_has_the_share_that_sigma_says(scheduler):
    latents, noise = torch.zeros(4, 1, 2, 2), torch.ones(4, 1, 2, 2)
    level = torch.tensor([0.0, 0.3, 0.6, 0.999])
    of_noise, timesteps, sigma = noised(scheduler, latents, noise, level)
    of_signal, _, _ = noised(scheduler, noise, latents, level)
    torch.testing.assert_close((of_noise / of_signal)[:, 0, 0, 0], sigma, rtol=1e-3, atol=1e-5)
    assert (timesteps.diff() > 0).all()
    assert timesteps.max() <= 1000


def test_noise_is_of_the_schedulers_own_table():
    """CogVideoX's is scaled and shifted; another class would take its own for what is not given."""
    scheduler = CogVideoXDDIMScheduler()
    latents, noise = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    noisy, timesteps, sigma = noised(scheduler, latents, noise, torch.tensor([0.5]))
    kept = scheduler.alphas_cumprod[500].float()
    assert timesteps.tolist() == [500.0]
    torch.testing.assert_close(noisy, kept.sqrt() * latents)
    torch.testing.assert_close(sigma, ((1 - kept) / kept).sqrt()[None])
    other = DDPMScheduler.from_config(scheduler.config).alphas_cumprod[500]
    assert not torch.isclose(kept, other, rtol=0.1)


def test_a_scheduler_without_a_table_is_refused():
    with pytest.raises(ValueError, match="EDMEulerScheduler has no table of noise"):
        noised(EDMEulerScheduler(), torch.ones(1, 4), torch.ones(1, 4), torch.tensor([0.5]))


def test_a_pipeline_of_packed_latents_is_told_to_learn_from_trajectories():
    pipe = tiny.flux()
    source = Images(
        pipe, scenes, scales=Scales(SCALE, SCALE), rows=ROWS, seed=[0], arguments=arguments(pipe)
    )
    with pytest.raises(ValueError, match="learn from trajectories"):
        source.at(0, teaching=torch.no_grad)


def test_scalars_become_one_per_row_and_what_has_no_rows_stays():
    trees = [
        {"t": torch.tensor(k), "x": torch.full((2, 3), k) + torch.arange(2)[:, None], "n": None}
        for k in (10, 20)
    ]
    trees = [tree | {"image_rotary_emb": torch.zeros(2)} for tree in trees]
    found = gathered(trees, [1, 0], rows=2)
    assert found["t"].tolist() == [10, 20]
    assert found["x"][:, 0].tolist() == [11, 20]
    assert found["n"] is None
    assert found["image_rotary_emb"] is trees[0]["image_rotary_emb"]


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="no prompts to learn from"):
        drawn_from([])
    assert set(drawn_from(["a", "b"])(np.random.default_rng(0), 20)) == {"a", "b"}


def test_every_row_is_taught_a_scale_of_its_own():
    scales, rng = Scales(2.0, 10.0), np.random.default_rng(0)
    drawn = scales.rows(rng, 4000).numpy()
    assert drawn.min() >= 2.0
    assert drawn.max() <= 10.0
    assert abs(drawn.mean() - 6.0) < 0.1
    assert len(np.unique(drawn)) > 0.99 * len(drawn)  # continuous
    assert set(Scales(5.0, 5.0).rows(rng, 50).tolist()) == {5.0}


@pytest.mark.parametrize("kind", ["trajectories", "images"])
def test_a_row_is_taught_what_its_own_scale_makes_of_the_two_predictions(kind):
    pipe = tiny.stable_diffusion()
    scales = Scales(1.0, 9.0)
    images = Images(pipe, scenes, scales=scales, rows=ROWS, seed=[0])
    source = trajectories(pipe, scales=scales) if kind == "trajectories" else images
    examples = source.at(1, teaching=torch.no_grad)
    assert len(set(examples.scale.tolist())) == ROWS
    for row, scale in enumerate(examples.scale.tolist()):
        cond, uncond = examples.cond[row], examples.uncond[row]
        torch.testing.assert_close(examples.target[row], uncond + scale * (cond - uncond))
    assert torch.equal(source.at(1, teaching=torch.no_grad).scale, examples.scale)
