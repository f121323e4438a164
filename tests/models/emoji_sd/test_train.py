import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.numpy import save_file

from sdbench.models.emoji_sd import catalogue, networks, stages, train
from sdbench.models.emoji_sd.export import export
from sdbench.models.emoji_sd.settings import Settings

CPU = torch.device("cpu")
TINY = Settings(
    reader_steps=4,
    reader_batch=4,
    autoencoder_steps=4,
    autoencoder_batch=2,
    captions_steps=4,
    captions_batch=4,
    denoiser_steps=4,
    denoiser_batch=4,
)


@pytest.fixture
def folder(tmp_path):
    """A run whose drawings are noise."""
    pictures = np.random.default_rng(0).integers(
        256, size=(len(catalogue.pictures()), 64, 64, 3), dtype=np.uint8
    )
    save_file({"pictures": pictures}, tmp_path / "pictures.safetensors")
    return tmp_path


def test_a_folder_with_other_settings_is_refused(folder):
    list(train.run(TINY, folder, folder, CPU, ()))
    with pytest.raises(ValueError, match="other settings"):
        list(train.run(dataclasses.replace(TINY, seed=1), folder, folder, CPU, ()))


def test_centred_latents_decode_to_the_same_picture():
    torch.manual_seed(0)
    vae = networks.autoencoder()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = vae.encode(images).latent_dist.mean
        decoded = vae.decode(before).sample
        means = before.mean(dim=(0, 2, 3))
        stages.centre(vae, means)
        after = vae.encode(images).latent_dist.mean
        again = vae.decode(after).sample
    assert torch.allclose(after, before - means[:, None, None], atol=1e-5)
    assert torch.allclose(again, decoded, atol=1e-4)


def test_pictures_are_moved_on_white():
    images = np.zeros((8, 64, 64, 3), dtype=np.uint8)
    moved = stages._moved(images, np.random.default_rng(0))
    assert moved.shape == images.shape
    assert set(np.unique(moved)) == {0, 255}
    assert (moved[:, 8:-8, 8:-8] == 0).all()


def test_spoilt_pictures_stay_pictures():
    pixels = torch.rand(4, 3, 64, 64)
    spoilt = stages._spoilt(pixels, torch.Generator().manual_seed(0))
    assert spoilt.shape == pixels.shape
    assert spoilt.min() >= 0
    assert spoilt.max() <= 1


def test_every_word_of_the_captions_is_one_token(tmp_path):
    tokenizer = networks.write_tokenizer(tmp_path)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in catalogue.words())
    captions = catalogue.captions(catalogue.pictures())
    assert max(len(tokens) for tokens in tokenizer(captions).input_ids) <= networks.TOKENS


@pytest.mark.slow
def test_training_from_nothing_exports_a_pipeline_that_diffusers_opens(folder, tmp_path):
    finished = ["reader", "autoencoder", "captions", "denoiser"]
    assert list(train.run(TINY, folder, folder, CPU)) == finished
    export(folder, tmp_path / "out")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    image = pipe("penguin, animals and nature, noto style", num_inference_steps=2).images[0]
    assert image.size == (64, 64)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert [record["stages"][name]["steps"] for name in finished] == [4, 4, 4, 4]
