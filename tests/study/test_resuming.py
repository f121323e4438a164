"""What was begun with one pipeline is not continued with another, whoever keeps the folder."""

import dataclasses

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from sdbench.experiments.branch_choice import BranchChoice
from sdbench.experiments.sensitivity import sweep
from sdbench.study import runner
from sdbench.study.shards import gather
from sdbench.study.study import Study
from sdbench.study.units import units
from tests import tiny

STUDY = Study(
    model="mine",
    variants=["cfg", "last:50%"],
    prompts=tiny.PROMPTS,
    seeds=[0],
    num_steps=4,
    guidance_scale=5.0,
    repeats=1,
    batch=1,
    metrics=[],
)


def made():
    torch.manual_seed(0)
    return tiny.stable_diffusion()


def other_scheduler(pipe):
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)


def other_settings(pipe):
    pipe.scheduler.register_to_config(timestep_spacing="trailing")


def other_weights(pipe):
    pipe.unet.conv_out.bias.data += 1e-4


def other_decoder(pipe):
    pipe.vae.decoder.conv_out.bias.data += 1e-4


CHANGES = {
    other_scheduler: r"scheduler \(DDIMScheduler \w+, now EulerDiscreteScheduler \w+\)",
    other_settings: "scheduler",
    other_weights: "unet",
    other_decoder: "vae",
}
CHANGED = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


def changed(change):
    pipe = made()
    change(pipe)
    return pipe


def refused(change):
    return pytest.raises(ValueError, match=f"differs? in its pipeline's {CHANGES[change]}")


@CHANGED
def test_a_study_is_resumed_on_its_own_pipeline_only(tmp_path, change):
    runner.run(STUDY, tmp_path / "study", pipe=made())
    with refused(change):
        runner.run(STUDY, tmp_path / "study", pipe=changed(change), mode="resume")
    assert len(runner.run(STUDY, tmp_path / "study", pipe=made(), mode="resume").runs) == 6


@pytest.mark.parametrize("full", [False, True])
def test_a_folder_whose_weights_changed_is_another_model(tmp_path, full):
    made().save_pretrained(tmp_path / "model")
    study = dataclasses.replace(STUDY, model=str(tmp_path / "model"), full_hash=full)
    runner.run(study, tmp_path / "study")
    runner.run(study, tmp_path / "study", mode="resume")

    changed(other_weights).save_pretrained(tmp_path / "model")
    with refused(other_weights):
        runner.run(study, tmp_path / "study", mode="resume")


def test_a_call_is_named_by_its_pipeline():
    first, again, other = (
        {unit.id for unit in units(STUDY, pipeline=name)} for name in ("a", "a", "b")
    )
    assert first == again
    assert not first & other


@CHANGED
def test_a_sweep_is_resumed_on_its_own_pipeline_only(tmp_path, change):
    choice = BranchChoice(kind="last")
    sweep(made(), STUDY.generation, choice, tmp_path / "sweep", metrics=["psnr"])
    with refused(change):
        sweep(
            changed(change),
            STUDY.generation,
            choice,
            tmp_path / "sweep",
            metrics=["psnr"],
            mode="resume",
        )


def test_shards_of_different_weights_are_not_put_together(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for number, pipe in enumerate([made(), changed(other_weights)], 1):
        runner.run(STUDY, folders[number - 1], pipe=pipe, shard=f"{number}/2")
    with refused(other_weights):
        gather(tmp_path / "study", folders)
