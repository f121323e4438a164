import dataclasses
import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdbench.models.mini_sd import train
from sdbench.models.mini_sd.export import export
from sdbench.models.mini_sd.fit import Stage, fit
from sdbench.models.mini_sd.settings import Settings

CPU = torch.device("cpu")
TINY = Settings(
    pool=40,
    reader_steps=4,
    reader_batch=4,
    autoencoder_steps=4,
    autoencoder_batch=2,
    captions_steps=4,
    captions_batch=4,
    denoiser_steps=4,
    denoiser_batch=4,
)


def linear_loss(network, die_at=None):
    def loss_at(step):
        if step == die_at:
            raise KeyboardInterrupt
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (network(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()

    return loss_at


def fitted(folder, die_at=None):
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    stage = Stage("linear", 20, learning_rate=0.1, ema_decay=0.9)
    return fit(stage, network, linear_loss(network, die_at), folder, device=CPU, save_every=5)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = fitted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "killed", die_at=13)
    resumed = fitted(tmp_path / "killed")
    assert torch.equal(whole.weight, resumed.weight)


def test_fitting_lowers_the_loss(tmp_path):
    before = torch.nn.Linear(3, 1)
    after = fitted(tmp_path)
    assert linear_loss(after)(999) < linear_loss(before)(999)


def test_a_folder_with_other_settings_is_refused(tmp_path):
    list(train.run(TINY, tmp_path, CPU, ()))
    with pytest.raises(ValueError, match="other settings"):
        list(train.run(dataclasses.replace(TINY, seed=1), tmp_path, CPU, ()))


@pytest.mark.slow
def test_training_from_nothing_exports_a_pipeline_that_diffusers_opens(tmp_path):
    stages = ("reader", "autoencoder", "denoiser")
    finished = ["reader", "autoencoder", "captions", "denoiser"]
    assert list(train.run(TINY, tmp_path, CPU, stages)) == finished
    export(tmp_path, tmp_path / "out")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert {module.dtype for module in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    assert pipe("a large red circle on a white background", num_inference_steps=2).images[
        0
    ].size == (64, 64)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert {name: stage["steps"] for name, stage in record["stages"].items()} == {
        name: getattr(TINY, f"{name}_steps") for name in finished
    }
    trained = torch.load(tmp_path / "captions.pt", weights_only=True)["average"]
    shipped = pipe.text_encoder.state_dict()  # frozen since
    assert all(
        torch.allclose(trained[f"module.text_encoder.{name}"], shipped[name], atol=1e-3)
        for name in shipped
    )
