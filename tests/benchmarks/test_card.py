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


def test_the_model_follows_its_captions_and_guidance_matters():
    """The bars that the shipped model was trained to, on what its card says of 256 captions."""
    measured = json.loads((WEIGHTS / "measured.json").read_text())
    alignment = {
        float(scale): mean for scale, (mean, _) in measured["alignment_and_standard_error"].items()
    }
    assert (measured["captions"], measured["steps"]) == (256, 50)
    assert max(alignment.values()) >= card.AIM
    assert max(alignment.values()) - alignment[1.0] >= 0.15
    assert measured["reader_accuracy"] >= 0.99


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
