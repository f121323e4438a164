"""What a call gave is an image, or the row says what else it was."""

import dataclasses

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from sdbench.analysis.tables import summarise
from sdbench.experiments.distances import _first_images
from sdbench.experiments.sensitivity import sensitivity
from sdbench.report.tables import remarks
from sdbench.study import runner
from sdbench.study.estimate import estimate
from sdbench.study.study import Study
from tests import tiny

STUDY = Study(
    model="mine",
    variants=["cfg", "last:50%"],
    prompts=tiny.PROMPTS,
    seeds=[0],
    num_steps=4,
    guidance_scale=5.0,
    repeats=2,
    metrics=["psnr", "ssim"],
)
DENOISER = "of the latents after step 0, by the denoiser"


@pytest.fixture
def pipe():
    torch.manual_seed(0)
    return tiny.stable_diffusion()


def no_signal(pipe):
    """A scheduler whose first step has none, for a model that predicts noise."""
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="epsilon",
    )


def broken_weights(pipe):
    pipe.unet.conv_out.weight.data.fill_(float("nan"))


def overflow(pipe):
    pipe.unet.conv_out.bias.data.fill_(float("inf"))


def broken_decoder(pipe):
    pipe.vae.decoder.conv_out.bias.data.fill_(float("nan"))


def infinite_pixels(pipe):
    """They are cut to white before the pipeline returns them."""
    pipe.vae.decoder.conv_out.bias.data.fill_(float("inf"))


FAULTS = {
    no_signal: "of the latents after step 0, by the scheduler",
    broken_weights: DENOISER,
    overflow: DENOISER,
    broken_decoder: "of the pixels, by the decoder",
    infinite_pixels: "of the pixels, by the decoder",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_call_that_is_not_finite_failed_and_says_where(pipe, fault):
    fault(pipe)
    found = runner.run(STUDY, pipe=pipe)
    assert set(found.runs["status"]) == {"failed"}
    assert found.runs["message"].str.contains(FAULTS[fault], regex=False).all()
    assert found.images.empty


def test_one_broken_variant_leaves_the_others_as_they_are(pipe):
    plain = pipe.unet.forward

    def forward(sample, *args, **kwargs):
        out = plain(sample, *args, **kwargs)
        if len(sample) == 2:  # rows of an unguided step
            out[0].fill_(float("nan"))
        return out

    pipe.unet.forward = forward
    runs = runner.run(STUDY, pipe=pipe).runs
    assert set(zip(runs["variant"], runs["status"], strict=True)) == {
        ("cfg", "ok"),
        ("last:50%", "failed"),
    }
    assert runs["message"].dropna().str.contains("after step 2, by the denoiser").all()


def test_latents_that_are_not_finite_fail_where_a_study_stops_there(pipe):
    broken_weights(pipe)
    latent = dataclasses.replace(STUDY, output="latent", height=16, width=16, metrics=None)
    assert set(runner.run(latent, pipe=pipe).runs["status"]) == {"failed"}


@pytest.mark.parametrize("fault", [broken_weights, broken_decoder])
def test_a_sweep_does_not_judge_what_is_not_finite(pipe, fault):
    fault(pipe)
    with pytest.raises(ValueError, match="not finite"):
        sensitivity(pipe, tiny.PROMPTS, [0], num_steps=4, guidance_scale=5.0, metrics=["psnr"])


def test_controls_are_not_tuned_on_what_is_not_finite(pipe):
    broken_weights(pipe)
    with pytest.raises(ValueError, match="the scale of the controls was not found: not finite"):
        runner.run(dataclasses.replace(STUDY, controls=True), pipe=pipe)


def test_a_signal_that_is_no_number_is_told(pipe, monkeypatch):
    nothing = (torch.tensor(float("nan")), torch.tensor(1.0))
    monkeypatch.setattr("sdbench.instruments.steps.guidance_signal", lambda *_: nothing)
    found = runner.run(STUDY, pipe=pipe)
    said = "not a number: guidance_cosine at 4 of 4 steps, the first of them 0"
    assert set(found.runs.query("variant == 'cfg'")["message"]) == {said}
    assert f"note: cfg: {said}" in remarks(found.runs)


def test_a_safety_checker_is_left_out_and_that_is_on_record(pipe):
    found = runner.run(STUDY, pipe=tiny.with_safety_checker(pipe))
    assert found.study["safety_checker"] is False
    assert found.images["flagged"].tolist() == [False] * 6
    assert found.images.query("variant != 'cfg'")["ssim"].between(0, 0.9999).all()


def test_a_placeholder_is_marked_and_not_scored(pipe):
    asked = dataclasses.replace(STUDY, safety_checker=True)
    found = runner.run(asked, pipe=tiny.with_safety_checker(pipe))
    assert found.images["flagged"].all()
    assert found.images[["psnr", "ssim"]].isna().all(axis=None)
    assert "note: cfg: the safety checker replaced 2 of 2 images" in remarks(found.runs)
    assert summarise(found)["ssim"].isna().all()


def test_an_image_is_not_compared_with_a_placeholder(pipe):
    checked = tiny.with_safety_checker(pipe)
    guided = []

    def forward(images, clip_input):
        """Flags the first image under full guidance, which warms up before all others."""
        if not guided:
            guided.append(images[0].clone())
        flagged = [torch.allclose(image, guided[0], atol=1e-4) for image in images]
        images[torch.tensor(flagged)] = 0
        return images, flagged

    checked.safety_checker.forward = forward
    found = runner.run(dataclasses.replace(STUDY, safety_checker=True), pipe=checked)
    scores = found.images.query("variant == 'last:50%'").set_index("prompt_id")
    assert not scores["flagged"].any()
    assert scores["ssim"].isna().to_dict() == {"000": True, "001": False}


def test_a_sweep_does_not_judge_a_placeholder(pipe):
    with pytest.raises(ValueError, match="replaced 2 of 2 images: a placeholder cannot be judged"):
        sensitivity(
            tiny.with_safety_checker(pipe),
            tiny.PROMPTS,
            [0],
            num_steps=4,
            guidance_scale=5.0,
            metrics=["psnr"],
            safety_checker=True,
        )


TAKEN = {
    "guidance_scale": 9.0,
    "num_inference_steps": 9,
    "prompt": "a blue ring",
    "negative_prompt": "blurry",
    "generator": 1,
    "height": 32,
    "width": 32,
    "latents": [0.0],
    "num_images_per_prompt": 2,
    "output_type": "np",
    "return_dict": False,
}


@pytest.mark.parametrize("name", TAKEN)
def test_arguments_that_a_study_gives_itself_are_refused_by_name(pipe, name):
    taken = dataclasses.replace(STUDY, arguments={name: TAKEN[name]})
    with pytest.raises(ValueError, match=f"argument '{name}' is set by the study"):
        runner.run(taken, pipe=pipe)


def euler(pipe):
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    return pipe


LISTS = {"timesteps": [900, 700, 500, 300, 200, 100], "sigmas": [9.0, 5.0, 3.0, 1.0, 0.5, 0.2]}


def steps_of(name, count):
    """Those of a list: this scheduler takes the last sigma for the loop's end."""
    return count if name == "timesteps" else count - 1


@pytest.mark.parametrize("count", [3, 6])
@pytest.mark.parametrize("name", LISTS)
def test_listed_steps_decide_their_number(pipe, name, count):
    study = dataclasses.replace(STUDY, arguments={name: LISTS[name][:count]}, metrics=())
    found = runner.run(study, pipe=euler(pipe))
    assert set(found.runs["status"]) == {"ok"}
    assert set(found.runs["num_steps"]) == {steps_of(name, count)}
    assert found.steps["step"].max() == steps_of(name, count) - 1


def test_another_number_of_steps_cannot_run_where_they_are_listed(pipe):
    listed = {"timesteps": [900, 600, 300]}
    study = dataclasses.replace(STUDY, variants=["cfg", "steps:2"], arguments=listed, metrics=())
    runs = runner.run(study, pipe=euler(pipe)).runs.set_index("variant")
    assert set(runs.loc["steps:2", "status"]) == {"unsupported"}
    assert "but the arguments list the timesteps" in runs.loc["steps:2", "message"].iloc[0]


def test_a_sweep_says_how_many_steps_were_listed(pipe):
    found = sensitivity(
        euler(pipe),
        tiny.PROMPTS,
        [0],
        num_steps=50,
        guidance_scale=5.0,
        kind="last",
        metrics=["psnr"],
        arguments={"timesteps": [900, 500, 200]},
    )
    assert set(found["num_steps"]) == {3}


def test_controls_are_not_made_up_for_listed_steps():
    with pytest.raises(ValueError, match="controls count steps, which the arguments list"):
        dataclasses.replace(STUDY, controls=True, arguments={"timesteps": [900, 500, 200]})


def test_a_dry_run_of_what_is_not_finite_is_refused(pipe):
    broken_weights(pipe)
    with pytest.raises(ValueError, match="not finite"):
        estimate(STUDY, pipe=pipe)


def test_a_distance_is_not_taken_to_placeholders(pipe):
    asked = dataclasses.replace(STUDY, safety_checker=True, seeds=[0, 1], batch=1, repeats=1)
    checked = tiny.with_safety_checker(pipe)
    flags = iter([[False]] * 2 + [[True], [False]] * 8)  # of warm-ups, then of every second call
    checked.safety_checker.forward = lambda images, clip_input: (images, next(flags))
    found = runner.run(asked, pipe=checked)
    kept = _first_images(found, fewest=0)
    flagged = found.images[found.images["flagged"]]
    assert len(flagged) > 0
    gone = set(zip(flagged["prompt_id"], flagged["seed"], strict=True))
    left = {
        pair for rows in kept.values() for pair in zip(rows["prompt_id"], rows["seed"], strict=True)
    }
    assert not gone & left
