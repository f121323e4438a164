"""The weights that ship, opened by name and by diffusers."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

import sdbench
from sdbench.instruments.quality import score
from sdbench.models.emoji_sd import catalogue, reader
from sdbench.models.grammars import held_out_captions
from sdbench.models.registry import EMOJI_SD

SUNGLASSES = "sunglasses, objects, noto style"


@pytest.fixture(scope="module")
def pipe():
    return sdbench.load("emoji-sd", device="cpu")


def test_it_opens_with_stock_diffusers_and_is_small():
    pipe = StableDiffusionPipeline.from_pretrained(EMOJI_SD, use_safetensors=True)
    assert pipe.unet.dtype == torch.float32
    assert sum(file.stat().st_size for file in EMOJI_SD.rglob("*")) < 25e6


def test_a_seen_name_is_drawn_so_that_the_reader_names_it(pipe):
    captions = [SUNGLASSES, "polar bear, animals and nature, fluent style"]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
    call = {"num_inference_steps": 20, "guidance_scale": 5.0, "output_type": "pt"}
    images = pipe(captions, generator=seeds, **call).images
    rows = torch.tensor([catalogue.parse(caption).tolist() for caption in captions]).numpy()
    assert reader.shown(rows, images)[:, reader.PARTS.index("name_top_5")].all()


def test_the_metric_reads_each_model_by_its_own_reader():
    images = torch.ones(3, 3, 64, 64)
    scene = "a small dotted green cross on a black background"
    values = score("alignment", images, [SUNGLASSES, scene, "a photo of a dog"])
    assert values[:2].isfinite().all()
    assert values[2].isnan()


def test_a_word_that_the_tokenizer_does_not_know_falls_into_pieces(pipe):
    known, unknown = (pipe.tokenizer.tokenize(word) for word in ("sunglasses", "xylophonist"))
    assert len(known) == 1
    assert len(unknown) > 1


def test_a_study_on_it_has_an_alignment(pipe):
    study = sdbench.Study(
        model="emoji-sd",
        variants=["cfg", "last:50%"],
        prompts=held_out_captions(2, "emoji-sd"),
        seeds=[0],
        num_steps=4,
        guidance_scale=5.0,
        repeats=1,
        metrics=["alignment"],
    )
    assert sdbench.run(study, pipe=pipe).images["alignment"].notna().all()
