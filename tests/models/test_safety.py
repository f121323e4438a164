"""A safety checker is left out and comes back, and what it flags is known."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from sdbench.models.pipeline import invoke
from sdbench.models.safety import flags_of, safety_checker
from tests import tiny

CALL = {"num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture
def checked():
    """A pipeline whose checker flags every image."""
    return tiny.with_safety_checker(tiny.stable_diffusion())


def images_of(pipe):
    generator = torch.Generator().manual_seed(0)
    return invoke(pipe, {"prompt": tiny.PROMPTS, "generator": generator} | CALL)


def test_without_its_checker_a_pipeline_makes_images(checked):
    assert images_of(checked).images.max() == 0
    with safety_checker(checked, on=False):
        output = images_of(checked)
    assert output.images.max() > 0
    assert flags_of(output) == ()


def test_a_checker_that_stays_on_flags(checked):
    with safety_checker(checked, on=True):
        assert flags_of(images_of(checked)) == (True, True)


def test_the_checker_comes_back_and_is_saved_with_the_pipeline(checked, tmp_path):
    checker, said = checked.safety_checker, dict(checked.config)
    with pytest.raises(RuntimeError), safety_checker(checked, on=False):
        raise RuntimeError
    assert checked.safety_checker is checker
    assert dict(checked.config) == said

    checked.save_pretrained(tmp_path)
    assert StableDiffusionPipeline.from_pretrained(tmp_path).safety_checker is not None


def test_a_guard_of_another_kind_stays_on(checked):
    class Guard(nn.Module):
        def forward(self, text):
            return text

    vars(checked)["safety_checker"] = guard = Guard()
    with safety_checker(checked, on=False):
        assert checked.safety_checker is guard


def test_a_pipeline_without_a_checker_is_left_alone():
    pipe = tiny.stable_diffusion_3()
    with safety_checker(pipe, on=False):
        assert "safety_checker" not in vars(pipe)


def test_flags_have_either_name():
    class Output:
        nsfw_detected = [False, True]  # noqa: RUF012 - as DeepFloyd IF names them

    assert flags_of(Output()) == (False, True)
