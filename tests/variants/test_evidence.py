"""Every variant does what it says, on mini-sd: counted at the denoiser, not taken on its word."""

import json

import pytest
from safetensors.torch import save_file

import sdbench
from sdbench.models.students import DENOISER_FILE
from sdbench.testing import VariantContract
from sdbench.variants.adapters import applied
from sdbench.variants.grammar import VARIANTS, methods_of, parse
from sdbench.variants.trace import Unsupported

EXAMPLES = [
    example
    for method in VARIANTS.values()
    if not method.transformers_only
    for example in method.examples
]
COMBINED = [
    "last:50%+lora",
    "last:50%+scale:6",
    "cfg+deepcache:2",
    "last:25%+deepcache:3",
    "lora+deepcache:3",
    "cached:2+deepcache:3",
    "every:2+deepcache:2",
    "last:25%+scheduler:dpmpp-2m",
    "lora+precision:int8wo",
]
OFTEN = {"unguided", "last:25%", "adaptive:0.9", "cached:2", "compressed:3", "lora"}
OFTEN |= {"deepcache:3", "guider:apg"}
"""Tried at every run of the tests; the others are among the slow ones."""
OF_TRANSFORMERS = [method for method in VARIANTS.values() if method.transformers_only]


@pytest.fixture(scope="module")
def contract():
    return VariantContract(sdbench.load("mini-sd"))


@pytest.fixture(autouse=True, scope="module")
def _files(contract, tmp_path_factory):
    """What FILE and PATH in examples stand for."""
    folder = tmp_path_factory.mktemp("files")
    plan = {"mask": "11010101", "scheduler": "DDIMScheduler"}
    recipe = {"variant": "last:2@7", "pipeline": {}, "guidance_scale": 5.0}
    (folder / "FILE").write_text(json.dumps(plan | recipe))
    (folder / "PATH").mkdir()
    state = contract.pipe.unet.state_dict()
    weights = {name: (0.99 * weight).contiguous() for name, weight in state.items()}
    save_file(weights, folder / "PATH" / DENOISER_FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, marks=[] if text in OFTEN else pytest.mark.slow)
        for text in [*EXAMPLES, *COMBINED]
    ],
)
def test_a_variant_is_real(contract, text):
    contract.check(text)


@pytest.mark.parametrize("method", OF_TRANSFORMERS, ids=lambda method: method.name)
def test_a_cache_for_transformers_is_unsupported_on_a_unet(contract, method):
    running = applied(contract.pipe, parse(method.examples[0]), guidance_scale=5.0)
    with pytest.raises(Unsupported, match="no caches for UNet2DConditionModel"), running:
        pass


def test_every_method_but_the_baseline_brings_an_example():
    assert [method.name for method in VARIANTS.values() if not method.examples] == ["cfg"]


def test_whatever_can_be_added_is_tried_in_a_combination():
    tried = {method.name for text in COMBINED for method in methods_of(text)[1:]}
    addable = {method.name for method in VARIANTS.values() if method.add is not None}
    of_transformers = {method.name for method in OF_TRANSFORMERS}
    assert addable - tried - of_transformers == {"tgate"}  # goes with full guidance only
