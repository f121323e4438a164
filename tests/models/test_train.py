import dataclasses
import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdbench.models.mini_sd import networks, train
from sdbench.models.mini_sd.export import export
from sdbench.models.mini_sd.settings import Settings
from sdbench.models.registry import MINI_SD
from sdbench.models.training.fit import Stage, fit
from sdbench.models.training.noise import spread_timesteps

CPU = torch.device("cpu")
TINY = Settings(
    pool=40,
    reader_steps=4,
    reader_batch=4,
    autoencoder_steps=4,
    autoencoder_batch=2,
    decoder_steps=4,
    decoder_batch=2,
    captions_steps=4,
    captions_batch=4,
    denoiser_steps=4,
    denoiser_batch=4,
    compiled=False,
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
    finished = ["reader", "autoencoder", "decoder", "captions", "denoiser"]
    assert list(train.run(TINY, tmp_path, CPU)) == finished
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


@pytest.mark.slow
def test_stages_are_taken_over_from_an_exported_model(tmp_path):
    list(train.run(TINY, tmp_path / "first", CPU))
    export(tmp_path / "first", tmp_path / "weights")
    longer = dataclasses.replace(TINY, denoiser_steps=5)

    trained = train.run(longer, tmp_path / "second", CPU, ("denoiser",), tmp_path / "weights")
    assert list(trained)[-1] == "denoiser"
    export(tmp_path / "second", tmp_path / "out")
    first, second = (
        StableDiffusionPipeline.from_pretrained(tmp_path / name / "pipeline")
        for name in ("weights", "out")
    )
    for name in ("vae", "text_encoder"):
        before, after = (getattr(pipe, name).state_dict() for pipe in (first, second))
        assert all(torch.equal(before[key], after[key]) for key in before)
    records = [
        json.loads((tmp_path / name / "training.json").read_text())["stages"]
        for name in ("weights", "out")
    ]
    assert records[0].pop("denoiser")["steps"] == 4
    assert records[1].pop("denoiser")["steps"] == 5
    versions = [stage.pop("versions") for stage in records[1].values()]
    assert all("torch" in found for found in versions)
    assert records[0] == records[1]


def test_stages_with_other_settings_are_not_taken_over(tmp_path):
    other = dataclasses.replace(Settings(), captions_steps=3)
    with pytest.raises(ValueError, match="trained with another captions_steps"):
        list(train.run(other, tmp_path, CPU, ("decoder", "denoiser"), MINI_SD.parent))


def test_timesteps_are_spread_over_the_whole_schedule():
    scheduler = networks.scheduler()
    drawn = [
        spread_timesteps(scheduler, 8, torch.Generator().manual_seed(seed)) for seed in range(400)
    ]
    assert all(((times // 125).sort().values == torch.arange(8)).all() for times in drawn)
    firsts = torch.stack(drawn)[:, 0]  # in random order, so each is uniform
    assert abs(firsts.float().mean() - 499.5) < 4 * 288.7 / 20
    assert firsts.min() < 25
    assert firsts.max() > 974


def test_training_sees_pure_noise_at_the_last_timestep():
    scheduler = networks.scheduler()
    assert float(scheduler.alphas_cumprod[-1]) == 0
    scheduler.set_timesteps(50)
    assert int(scheduler.timesteps[0]) == 999
