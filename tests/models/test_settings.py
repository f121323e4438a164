"""Each setting of a pipeline that is changed changes the key of the environment."""

import json
from types import SimpleNamespace

import accelerate
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_first_block_cache, apply_group_offloading
from diffusers.models import attention_dispatch
from diffusers.models.attention_processor import AttnProcessor
from torch.testing._internal.two_tensor import TwoTensor

from sdbench.models.settings import caches, settings_of
from sdbench.records.environment import environment_key
from tests import families, tiny

CACHE = FirstBlockCacheConfig(threshold=0.1)


def of(pipe, network):
    return settings_of(pipe)["components"][network]


@pytest.fixture
def active():
    """Diffusers' registry of attention, whose active backend is put back."""
    registry = attention_dispatch._AttentionBackendRegistry
    before = registry._active_backend
    yield registry
    registry._active_backend = before


def cast(pipe):
    pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )


def pack(pipe):
    layer = pipe.transformer.proj_out
    layer.weight = torch.nn.Parameter(
        TwoTensor(layer.weight.data, layer.weight.data.clone()), requires_grad=False
    )


def group(pipe):
    apply_group_offloading(
        pipe.transformer,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
    )


def patched(pipe):
    def forward(*args, **kwargs):
        return None

    forward.__module__ = "DeepCache.extension"
    pipe.transformer.forward = forward


CHANGES = {
    "casting": cast,
    "tensors of torchao": pack,
    "integers": lambda pipe: pipe.transformer.register_buffer(
        "packed", torch.zeros(2, dtype=torch.int8)
    ),
    "asked quantisation": lambda pipe: pipe.transformer.register_to_config(
        quantization_config={"quant_method": "torchao", "quant_type": "int8wo"}
    ),
    "cache": lambda pipe: pipe.transformer.enable_cache(CACHE),
    "cache by hooks alone": lambda pipe: apply_first_block_cache(pipe.transformer, CACHE),
    "model offload": lambda pipe: accelerate.cpu_offload_with_hook(pipe.transformer, "cpu"),
    "sequential offload": lambda pipe: accelerate.cpu_offload(pipe.transformer, "cpu"),
    "group offload": group,
    "dtype": lambda pipe: pipe.vae.to(torch.bfloat16),
    "device": lambda pipe: pipe.vae.to("meta"),
    "compiled": lambda pipe: pipe.transformer.compile(),
    "compiled blocks": lambda pipe: pipe.transformer.transformer_blocks[0].compile(),
    "own attention backend": lambda pipe: pipe.transformer.set_attention_backend("_native_math"),
    "accelerator": patched,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_is_changed_changes_the_key(name, active):
    pipe = families.make("flux")
    before = settings_of(pipe)
    CHANGES[name](pipe)
    after = settings_of(pipe)
    assert environment_key(after) != environment_key(before)
    assert json.loads(json.dumps(after)) == after


def test_layerwise_casting_tells_both_dtypes():
    pipe = families.make("flux")
    cast(pipe)
    told = of(pipe, "transformer")
    (casting,) = told["casting"]
    assert casting.startswith("float8_e4m3fn stored, float32 computed x ")
    assert told["dtypes"] == ["float32", "float8_e4m3fn"]
    assert "hooks" not in told


def test_a_backend_that_another_model_set_holds_for_all_and_stays(active):
    first, second = families.make("flux"), families.make("flux")
    assert of(second, "transformer")["attention"] == ["FluxAttnProcessor native"]
    first.transformer.set_attention_backend("_native_math")
    first.transformer.reset_attention_backend()
    assert of(second, "transformer")["attention"] == ["FluxAttnProcessor _native_math"]


def test_a_processor_that_asks_nobody_is_named_alone():
    pipe = tiny.stable_diffusion()
    assert of(pipe, "unet")["attention"] == ["AttnProcessor2_0"]
    pipe.unet.set_attn_processor(AttnProcessor())
    assert of(pipe, "unet")["attention"] == ["AttnProcessor"]
    assert of(pipe, "text_encoder")["attention"] == ["sdpa"]


def test_packed_weights_are_named_with_what_is_in_them():
    pipe = families.make("flux")
    pack(pipe)
    assert of(pipe, "transformer")["quantisation"] == {"tensors": ["TwoTensor float32 x 1"]}


def test_what_a_quantiser_was_asked_for_is_on_record_though_the_configuration_lacks_it():
    pipe = families.make("flux")
    asked = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    pipe.transformer.hf_quantizer = SimpleNamespace(quantization_config=asked)
    assert of(pipe, "transformer")["quantisation"] == {"config": asked}


def test_packed_weights_within_packed_weights_are_seen_through():
    inner = TwoTensor(torch.zeros(2, dtype=torch.int8), torch.zeros(2, dtype=torch.int8))
    pipe = families.make("flux")
    pipe.transformer.packed = torch.nn.Parameter(TwoTensor(inner, inner), requires_grad=False)
    assert of(pipe, "transformer")["quantisation"] == {"tensors": ["TwoTensor int8 x 1"]}


@pytest.mark.filterwarnings("ignore")
def test_layers_that_pack_their_weights_are_counted():
    pipe = tiny.stable_diffusion()
    torch.ao.quantization.quantize_dynamic(pipe.unet, {torch.nn.Linear}, inplace=True)
    layers = of(pipe, "unet")["quantisation"]["layers"]
    assert any(text.startswith("Linear x ") for text in layers)


def test_a_cache_is_named_however_it_was_put_there():
    pipe = families.make("flux")
    assert caches(pipe.transformer) == []
    pipe.transformer.enable_cache(CACHE)
    assert caches(pipe.transformer) == ["FirstBlockCacheConfig"]
    pipe.transformer.disable_cache()
    assert caches(pipe.transformer) == []
    apply_first_block_cache(pipe.transformer, CACHE)
    assert caches(pipe.transformer) == ["FBCBlockHook", "FBCHeadBlockHook"]
