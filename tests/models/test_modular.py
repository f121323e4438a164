"""Modular pipelines opened, called and named."""

import shutil

import pytest
import torch
from diffusers import ClassifierFreeGuidance

import sdbench
from sdbench.models.identity import identity
from sdbench.models.modular import formula_scale, guiders_of
from sdbench.models.modular_folders import MODULAR_INDEX
from sdbench.models.pipeline import call_parameters, guidance_arguments, invoke
from sdbench.models.registry import load
from sdbench.study.study import Study
from tests import tiny
from tests.families import modular
from tests.families.modular import run


@pytest.fixture(scope="module")
def pipe():
    return modular.stable_diffusion_xl()


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("modular") / "sdxl"
    pipe.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def opened(folder):
    return load(str(folder), device="cpu")


def test_a_folder_is_opened(pipe, saved):
    found = opened(saved)
    found.call = pipe.call
    tiny.assert_same_latents(run(found), run(pipe), tolerance=1e-4)  # of another memory format


def test_a_folder_that_was_moved_is_opened_from_where_it_is(pipe, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "moved")
    index = tmp_path / "moved" / MODULAR_INDEX
    index.write_text(index.read_text().replace(str(saved), "/nowhere/at/all"))
    weights = opened(tmp_path / "moved").unet.state_dict()
    assert all(torch.equal(pipe.unet.state_dict()[name], weights[name]) for name in weights)


def test_a_component_that_cannot_be_loaded_is_named(saved, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(saved, folder)
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="its vae cannot be loaded"):
        opened(folder)


def test_pickles_are_refused(saved, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(saved, folder)
    (weights,) = (folder / "unet").glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="is a pickle"):
        opened(folder)


def test_an_index_is_no_folder(saved):
    with pytest.raises(ValueError, match="give the folder"):
        opened(saved / MODULAR_INDEX)


def test_a_pipeline_that_is_handed_in_is_taken_as_it_is(pipe):
    assert load(pipe) is pipe


def test_the_scale_is_an_argument_and_the_guiders_for_the_length_of_a_call(pipe):
    own = pipe.guider
    assert {"guidance_scale", "prompt", "height"} <= call_parameters(pipe)
    assert not torch.equal(run(pipe, guidance_scale=2.0), run(pipe, guidance_scale=8.0))
    assert pipe.guider is own
    assert own.guidance_scale == 7.5


def test_a_guider_that_starts_from_the_conditional_prediction_gets_one_less():
    pipe = modular.FAMILIES["krea-2-modular"]()
    assert pipe.guider.use_original_formulation
    assert formula_scale(pipe.guider) == pipe.guider.guidance_scale + 1
    from_conditional = run(pipe, guidance_scale=4.0)
    pipe.guider = ClassifierFreeGuidance()
    torch.testing.assert_close(run(pipe, guidance_scale=4.0), from_conditional)


def test_both_experts_get_the_scale_unless_they_are_given_their_own():
    pipe = modular.FAMILIES["wan-2.2-modular"]()
    assert set(guiders_of(pipe)) == {"guider", "guider_2"}
    assert "guidance_scale_2" in call_parameters(pipe)
    both = run(pipe, guidance_scale=4.0)
    assert torch.equal(run(pipe, guidance_scale=4.0, guidance_scale_2=4.0), both)
    assert not torch.equal(run(pipe, guidance_scale=4.0, guidance_scale_2=2.0), both)


def test_a_call_does_not_depend_on_the_call_before(pipe):
    """diffusers asks a guider at its last step whether a negative prompt is needed."""
    with_stop = modular.stable_diffusion_xl()
    with_stop.guider = ClassifierFreeGuidance(stop=0.5)
    assert torch.equal(run(with_stop), run(with_stop))


def test_a_negative_prompt_is_given_where_no_block_asks_for_one(pipe):
    asking = guidance_arguments(pipe, 5.0, rows=2)
    assert asking == {"guidance_scale": 5.0}
    silent = guidance_arguments(modular.stable_diffusion_3(), 5.0, rows=2)
    assert silent == {"guidance_scale": 5.0, "negative_prompt": ["", ""]}


def test_images_and_latents_are_where_other_pipelines_have_them(pipe):
    images = invoke(pipe, pipe.call | {"output_type": "pt"}).images
    assert images.shape == (2, 3, 16, 16)
    assert invoke(pipe, pipe.call).images.shape == (2, 4, 8, 8)
    assert "decode" in pipe.blocks.sub_blocks


def test_videos_are_frames():
    pipe = modular.FAMILIES["wan-modular"]()
    assert run(pipe).ndim == 5


def test_the_blocks_are_part_of_what_a_pipeline_is(pipe):
    other = modular.stable_diffusion_xl()
    assert identity(other) == identity(pipe)
    other._blocks.sub_blocks.pop("ip_adapter")
    assert identity(other)["pipeline"] != identity(pipe)["pipeline"]


def test_a_study_runs_on_a_modular_pipeline(pipe, tmp_path):
    study = Study(
        model="sdxl-modular",
        variants=["cfg", "last:50%", "guider:apg", "guider:slg,0"],
        prompts=tiny.PROMPTS,
        seeds=[0],
        num_steps=4,
        guidance_scale=5.0,
        height=16,
        width=16,
        repeats=1,
        metrics=["psnr"],
    )
    results = sdbench.run(study, tmp_path / "study", pipe=pipe)
    ended = results.runs.set_index("variant")["status"]
    assert set(ended.drop("guider:slg,0")) == {"ok"}
    assert set(results.runs.query("status != 'ok'")["variant"]) == {"guider:slg,0"}
    rows = results.steps[results.steps.phase == "measured"].groupby("variant").rows.sum()
    assert rows.to_dict() == {"cfg": 16, "last:50%": 12, "guider:apg": 16}
    assert results.runs.message.str.contains("has no stack of blocks").any()
