import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdbench.models import registry


def test_mini_sd_opens_with_stock_diffusers_in_float32():
    pipe = StableDiffusionPipeline.from_pretrained(registry.MINI_SD)
    assert {module.dtype for module in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}


def test_mini_sd_is_small_enough_to_ship():
    folder = registry.MINI_SD.parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 20e6


def test_a_pipeline_is_returned_as_it_is():
    pipe = object()
    assert registry.load(pipe) is pipe


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("sd99", "unknown model 'sd99'; there are: mini-sd"),
        ("nobody/nothing", "model 'nobody/nothing' cannot be opened"),
    ],
)
def test_an_unknown_model_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        registry.load(model)


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no diffusers pipeline"):
        registry.load(tmp_path)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="unknown dtype 'int3'; there are: float32"):
        registry.load("mini-sd", dtype="int3")
