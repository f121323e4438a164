"""A pipeline under another scheduler is the pipeline that was made with it."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

import sdbench
from sdbench.study.study import Study
from sdbench.variants.grammar import parse
from sdbench.variants.other_scheduler import SCHEDULERS, other_scheduler, under_scheduler
from sdbench.variants.trace import Unsupported
from tests import tiny

STUDY = Study(
    model="mini-sd",
    variants=["cfg", "scheduler:dpmpp-2m", "last:50%+scheduler:dpmpp-2m@4"],
    prompts=["a large red circle on a white background"],
    seeds=[0],
    num_steps=6,
    guidance_scale=5.0,
    batch=1,
    repeats=1,
    metrics=["ssim"],
)


def latents(pipe, num_steps=6):
    return pipe(
        STUDY.prompts[0],
        num_inference_steps=num_steps,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="latent",
    ).images


def test_it_does_what_a_pipeline_that_was_made_with_it_does():
    pipe, made = sdbench.load("mini-sd"), sdbench.load("mini-sd")
    made.scheduler = DPMSolverMultistepScheduler.from_config(made.scheduler.config)
    own, before = pipe.scheduler, latents(pipe)
    with under_scheduler(pipe, "dpmpp-2m"):
        assert torch.equal(latents(pipe), latents(made))
    assert pipe.scheduler is own
    assert torch.equal(latents(pipe), before)


def test_a_study_names_the_scheduler_of_every_call(tmp_path):
    results = sdbench.run(STUDY, tmp_path / "study")
    runs = results.runs[results.runs["phase"] == "measured"].set_index("variant")
    assert runs["scheduler"].to_dict() == {
        "cfg": "DDIMScheduler",
        "scheduler:dpmpp-2m": "DPMSolverMultistepScheduler",
        "last:50%+scheduler:dpmpp-2m@4": "DPMSolverMultistepScheduler",
    }
    assert runs["nfe"].to_dict() == {
        "cfg": 12,
        "scheduler:dpmpp-2m": 12,
        "last:50%+scheduler:dpmpp-2m@4": 6,
    }
    assert runs["first_timestep"].nunique() == 1


def test_one_that_does_not_fit_is_refused_before_anything_runs():
    pipe = tiny.stable_diffusion_3()
    with pytest.raises(Unsupported, match="DDIMScheduler cannot take the place of FlowMatch"):
        other_scheduler(pipe, "ddim")


def test_every_name_is_a_scheduler_of_diffusers():
    import diffusers

    assert all(hasattr(diffusers, kind) for kind in SCHEDULERS.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scheduler:fast", "expected scheduler:NAME; there are: ddim, "),
        ("scheduler", "expected scheduler:NAME"),
        ("last:2+scheduler:ddim+scheduler:heun", "has another scheduler already"),
    ],
)
def test_a_scheduler_that_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)
