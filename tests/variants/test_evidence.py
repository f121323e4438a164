"""Every variant does what it says, on mini-sd: counted at the denoiser, not taken from the variant's word."""

import json
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import sdbench
from sdbench.models.students import DENOISER_FILE
from sdbench.variants.adapters import applied
from sdbench.variants.guidance import call_replaced
from sdbench.variants.registry import ADDED, VARIANTS, parse
from sdbench.variants.rows import first_tensor
from sdbench.variants.trace import Unsupported

STEPS = 8
PROMPTS = [
    "a small dotted green cross on a black background",
    "a large blue ring on a white background",
]
SAVES_ROWS = [
    "unguided",
    "last:25%",
    "first:2",
    "window:2+3",
    "every:2",
    "random:3@1",
    "mask:11101010",
    "interval:0.28-5.42",
    "step-ag:50%",
    "adaptive:0.9",
    "cached:2",
    "cached:3,from=2,split",
    "compressed:3",
    "compressed:3^2",
    "steps:6",
    "lora",
    "last:50%+lora",
    "last:50%+scale:6",
    "plan:FILE",
    "full:PATH",
    "tgate:3",
]
SAVES_WORK_IN_A_ROW = ["deepcache:3", "cfg+deepcache:2"]
SAVES_BOTH = [
    "last:25%+deepcache:3",
    "lora+deepcache:3",
    "cached:2+deepcache:3",
    "every:2+deepcache:2",
]
QUALITY_ONLY = [
    "scale:3.5",
    "schedule:linear",
    "schedule:cosine",
    "schedule:clamp-linear@2",
    "rescale:0.7",
    "guider:apg",
    "guider:cfg-zero",
    "guider:tcfg",
]
OFTEN = {
    "unguided",
    "last:25%",
    "adaptive:0.9",
    "cached:2",
    "compressed:3",
    "lora",
    "deepcache:3",
    "guider:apg",
}
"""Tried at every run of the tests; the others among the slow ones."""
OF_TRANSFORMERS = {"firstblock", "taylorseer", "pab", "fastercache", "magcache"}


@pytest.fixture(scope="module")
def pipe():
    return sdbench.load("mini-sd")


@pytest.fixture(scope="module")
def made(pipe):
    """Images, rows and FLOPs of full guidance, and of nothing else again."""
    return _made(pipe, "cfg", counted=True)


@pytest.fixture(autouse=True, scope="module")
def _files(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "FILE").write_text(json.dumps({"mask": "11010101", "scheduler": "DDIMScheduler"}))
    (folder / "PATH").mkdir()
    weights = {
        name: (0.99 * weight).contiguous() for name, weight in pipe.unet.state_dict().items()
    }
    save_file(weights, folder / "PATH" / DENOISER_FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def _made(pipe, text, pairs=(0, 1), *, counted=False):
    variant, rows = parse(text), []

    def counting(original):
        def call(*args, **kwargs):
            rows.append(len(first_tensor((args, kwargs))))
            return original(*args, **kwargs)

        return call

    scale = variant.guidance_scale or 5.0
    with (
        call_replaced(pipe.unet, counting),
        applied(pipe, variant, guidance_scale=scale),
        FlopCounterMode(display=False) if counted else nullcontext() as counter,
    ):
        images = pipe(
            [PROMPTS[pair] for pair in pairs],
            guidance_scale=scale,
            num_inference_steps=variant.num_steps or STEPS,
            generator=[torch.Generator("cpu").manual_seed(pair) for pair in pairs],
            output_type="pt",
            **variant.arguments,
        ).images
    return images, sum(rows), counter and counter.get_total_flops()


def _same(found, expected):
    return (found - expected).abs().max() < 2e-3  # the noise of another batch size, in [0, 1]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, marks=[] if text in OFTEN else pytest.mark.slow)
        for text in [*SAVES_ROWS, *SAVES_WORK_IN_A_ROW, *SAVES_BOTH, *QUALITY_ONLY]
    ],
)
def test_a_variant_is_real(pipe, made, text):
    plain, plain_rows, plain_flop = made
    images, rows, flop = _made(pipe, text, counted=True)

    assert (rows < plain_rows) == (text in SAVES_ROWS + SAVES_BOTH)
    assert (flop < plain_flop) == (text not in QUALITY_ONLY)
    if not text.startswith(
        "tgate"
    ):  # which also saves little within a row of a network as small as this
        in_a_row = text in SAVES_WORK_IN_A_ROW + SAVES_BOTH
        assert (flop / rows < 0.99 * plain_flop / plain_rows) == in_a_row
    assert not torch.equal(images, plain)
    assert torch.isfinite(images).all()

    assert torch.equal(_made(pipe, text)[0], images)
    for pair in (0, 1):
        assert _same(_made(pipe, text, pairs=(pair,))[0], images[[pair]])
    assert torch.equal(_made(pipe, "cfg")[0], plain)


@pytest.mark.parametrize("name", sorted(OF_TRANSFORMERS))
def test_a_cache_for_transformers_is_unsupported_on_a_unet(pipe, name):
    with pytest.raises(Unsupported, match="no caches for UNet2DConditionModel"):
        _made(pipe, f"{name}:2")


def test_no_kind_of_variant_is_left_out():
    texts = [*SAVES_ROWS, *SAVES_WORK_IN_A_ROW, *SAVES_BOTH, *QUALITY_ONLY]
    kinds = {
        part.partition(":")[0] for text in texts for part in text.split("+") if not part.isdigit()
    }
    assert kinds | OF_TRANSFORMERS == set(VARIANTS)
    assert set(ADDED) - OF_TRANSFORMERS <= {
        part.partition(":")[0] for text in texts for part in text.split("+")
    }
