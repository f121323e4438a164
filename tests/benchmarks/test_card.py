import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from benchmarks import card
from sdbench.models.mini_sd import reader, scenes
from sdbench.models.registry import MINI_SD

WEIGHTS = MINI_SD.parent


def test_the_card_states_what_was_measured_and_recorded(tmp_path):
    for name in ("measured.json", "training.json"):
        shutil.copy(WEIGHTS / name, tmp_path)
    card.write_card(tmp_path, json.loads((tmp_path / "measured.json").read_text()))
    assert (tmp_path / "README.md").read_text() == (WEIGHTS / "README.md").read_text()


def test_the_model_reaches_its_aims():
    measured = json.loads((WEIGHTS / "measured.json").read_text())
    assert (measured["captions"], measured["steps"]) == (256, 50)
    assert measured["reader_accuracy"] >= 0.99
    assert card.missed_aims(measured) == []


def test_the_card_names_the_command_and_the_stages_of_another_model():
    training = {"stages": {"reader": {"versions": {"torch": "2.15.0"}}, "denoiser": {}}}
    command = card._training_command(training, "training/mini-sd")
    assert command.endswith("--from MODEL --stage denoiser --export training/mini-sd")
    assert "the stages reader are its own, trained with torch 2.15.0" in card._taken_over(training)
    whole = {"stages": {"reader": {}, "denoiser": {}}}
    assert "--from" not in card._training_command(whole, "weights")
    assert card._taken_over(whole) == ""


def test_the_card_says_whether_the_background_is_read_from_the_noise():
    measured = json.loads((WEIGHTS / "measured.json").read_text())
    assert "The model does not read the background" in card._without_mean(measured)
    measured["right_by_kind"]["5.0"]["background"] = 0.74
    assert "The model reads the background" in card._without_mean(measured)


def test_an_aim_that_is_missed_stands_in_the_card():
    measured = json.loads((WEIGHTS / "measured.json").read_text())
    measured["right_by_kind"]["5.0"]["background"] = 0.5
    measured["alignment_and_standard_error"]["1.0"][0] = 0.9
    missed = card.missed_aims(measured)
    assert missed[0] == "background of 0.97 (it has 0.500)"
    assert missed[-1].startswith("w = 1 lower by 0.2 (it is by ")


def test_noise_without_its_mean_has_none(monkeypatch):
    seen = []
    monkeypatch.setattr(
        card, "_images", lambda *given: seen.append(given[-1]) or torch.zeros(2, 3, 64, 64)
    )
    card.generate(None, ["a", "b"], 5.0, without_mean=True)
    card.generate(None, ["a", "b"], 5.0)
    assert seen[0].mean(dim=(2, 3)).abs().max() < 1e-6
    assert seen[1].mean(dim=(2, 3)).abs().max() > 1e-3
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(seen[1][1:], noise)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_the_shipped_model_scores_what_its_card_says(scale):
    measured = json.loads((WEIGHTS / "measured.json").read_text())
    pipe = StableDiffusionPipeline.from_pretrained(MINI_SD)
    pipe.set_progress_bar_config(disable=True)
    wanted = scenes.sample(measured["captions"], np.random.default_rng(4), split="test")[:64]
    images = card.generate(pipe, scenes.captions(wanted), scale)
    stated, _ = measured["alignment_and_standard_error"][str(scale)]
    assert reader.share_shown(wanted, reader.read(images)).mean() == pytest.approx(stated, abs=0.05)


def test_images_of_a_caption_do_not_depend_on_the_others():
    pipe = StableDiffusionPipeline.from_pretrained(MINI_SD)
    pipe.set_progress_bar_config(disable=True)
    captions = [
        "a large red circle on a white background",
        "a small blue ring on a black background",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "STEPS", 2)
        together = card.generate(pipe, captions, 5.0)
        alone = card.generate(pipe, captions[:1], 5.0)
    assert torch.allclose(together[:1], alone, atol=1e-4)
