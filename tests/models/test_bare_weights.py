import json

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch.nn.parallel import DataParallel

from sdbench.models.bare_weights import bare_weights, require_own_weights
from sdbench.models.pipeline import denoiser_of
from sdbench.models.random_weights import has_random_weights
from sdbench.models.students import CARD_FILE, LORA_FILE, base_record, check_base
from tests import tiny


def compiled(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compiled_block(pipe):
    pipe.unet.mid_block = torch.compile(pipe.unet.mid_block, backend="eager")


def fused_and_unfused(pipe):
    pipe.fuse_qkv_projections()
    pipe.unfuse_qkv_projections()


def in_parallel(pipe):
    pipe.unet = DataParallel(pipe.unet)


def hooked(pipe):
    add_hook_to_module(pipe.unet.conv_in, ModelHook())


def with_low_rank_layers(pipe):
    from sdbench.distill.low_rank_layers import add_lora

    add_lora(pipe.unet, rank=1, alpha=1, targets=["attention", "convolutions"])


def without_them_again(pipe):
    with_low_rank_layers(pipe)
    pipe.unet.unload_lora()


SAME = {
    "plain": lambda pipe: None,
    "compiled": compiled,
    "compiled twice": lambda pipe: (compiled_block(pipe), compiled(pipe)),
    "compiled in place": lambda pipe: pipe.unet.compile(backend="eager"),
    "compiled in part": compiled_block,
    "fused projections": lambda pipe: pipe.fuse_qkv_projections(),
    "fused and unfused": fused_and_unfused,
    "channels last": lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
    "in parallel": in_parallel,
    "hooked": hooked,
    "float16": lambda pipe: pipe.to(torch.float16),
    "bfloat16": lambda pipe: pipe.to(torch.bfloat16),
    "float64": lambda pipe: pipe.to(torch.float64),
    "with a LoRA": with_low_rank_layers,
    "LoRA taken off": without_them_again,
}


def card_of(folder, base):
    (folder / CARD_FILE).write_text(json.dumps({"model": "tiny", "base": base}))
    return folder / LORA_FILE


@pytest.mark.parametrize("way", SAME)
def test_a_base_is_known_whatever_stands_around_its_weights(tmp_path, way):
    file = card_of(tmp_path, base_record(tiny.stable_diffusion().unet))
    pipe = tiny.stable_diffusion()
    SAME[way](pipe)
    check_base(pipe.unet, file)


@pytest.mark.parametrize("way", ["compiled", "compiled in part", "fused projections", "hooked"])
def test_the_record_of_a_base_is_the_same_whatever_stands_around_it(way):
    pipe = tiny.stable_diffusion()
    SAME[way](pipe)
    assert base_record(pipe.unet) == base_record(tiny.stable_diffusion().unet)


@pytest.mark.parametrize("family", [tiny.stable_diffusion_3, tiny.flux])
def test_a_transformer_with_fused_projections_is_the_same_base(tmp_path, family):
    pipe = family()
    file = card_of(tmp_path, base_record(pipe.transformer))
    before = list(bare_weights(pipe.transformer))
    pipe.transformer.fuse_qkv_projections()
    assert len(list(pipe.transformer.parameters())) > len(before)
    assert list(bare_weights(pipe.transformer)) == before
    check_base(pipe.transformer, file)
    with pytest.raises(ValueError, match="has fused projections"):
        require_own_weights(pipe.transformer)
    pipe.transformer.unfuse_qkv_projections()
    require_own_weights(pipe.transformer)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_a_card_made_of_a_wrapped_base_is_still_read(tmp_path, prefix):
    unet = tiny.stable_diffusion().unet
    base = base_record(unet)
    kind = "OptimizedModule" if prefix == "_orig_mod." else "DistributedDataParallel"
    values = {prefix + name: numbers for name, numbers in base["values"].items()}
    check_base(unet, card_of(tmp_path, base | {"denoiser": kind, "values": values}))


@pytest.mark.parametrize("way", ["plain", "compiled", "fused projections", "bfloat16"])
@pytest.mark.parametrize("changed", ["all", "one"])
def test_another_fine_tune_is_another_base(tmp_path, way, changed):
    pipe = tiny.stable_diffusion()
    file = card_of(tmp_path, base_record(pipe.unet))
    names = [next(iter(bare_weights(pipe.unet)))] if changed == "one" else None
    with torch.no_grad():
        for name, weight in bare_weights(pipe.unet).items():
            if names is None or name in names:
                weight.mul_(1.05)
    SAME[way](pipe)
    with pytest.raises(ValueError, match="made for another base, UNet2DConditionModel of tiny"):
        check_base(pipe.unet, file)


@pytest.mark.parametrize(
    "change", [{"denoiser": "FluxTransformer2DModel"}, {"parameters": 1}, {"values": {"x": [1.0]}}]
)
def test_a_record_of_another_network_is_another_base(tmp_path, change):
    unet = tiny.stable_diffusion().unet
    with pytest.raises(ValueError, match="made for another base"):
        check_base(unet, card_of(tmp_path, base_record(unet) | change))


def test_weights_that_come_layer_by_layer_are_refused():
    unet = tiny.stable_diffusion().unet
    accelerate.cpu_offload(unet, execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"undo `enable_sequential_cpu_offload\(\)`"):
        base_record(unet)
    with pytest.raises(ValueError, match=r"undo `enable_sequential_cpu_offload\(\)`"):
        require_own_weights(unet)


def test_a_compiled_network_is_asked_whether_its_weights_are_random():
    pipe = tiny.stable_diffusion()
    compiled(pipe)
    assert not has_random_weights(pipe)
    assert denoiser_of(pipe) is pipe.unet
