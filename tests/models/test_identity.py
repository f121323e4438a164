"""A pipeline is named by what decides its images, and by nothing else."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from peft import LoraConfig
from torch import nn

from sdbench.models.identity import _sums, identity
from tests import tiny


@pytest.fixture
def pipe():
    torch.manual_seed(0)
    return tiny.stable_diffusion()


def one_weight(pipe):
    pipe.unet.conv_out.weight.data[0, 0, 0, 0] += 1e-6


def a_swap(pipe):
    weight = pipe.unet.conv_in.weight.data
    weight[0, 0, 0, 0], weight[-1, -1, -1, -1] = (
        weight[-1, -1, -1, -1].clone(),
        weight[0, 0, 0, 0].clone(),
    )


def half_precision(pipe):
    pipe.unet.to(torch.float16)


def another_scheduler(pipe):
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)


def another_spacing(pipe):
    pipe.scheduler.register_to_config(timestep_spacing="trailing")


def own_noise_levels(pipe):
    pipe.scheduler.alphas_cumprod[10] *= 0.9


def another_decoder(pipe):
    pipe.vae.decoder.conv_out.bias.data[0] += 1


def tiles(pipe):
    pipe.vae.enable_tiling()


def freeu(pipe):
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)


def sliced_attention(pipe):
    pipe.enable_attention_slicing(1)


def two_words_of_a_block(pipe):
    words = pipe.unet.conv_in.weight.data.view(-1).view(torch.int64)
    words[[0, 1]] = words[[1, 0]]


def exchanged_tokens(pipe):
    words = pipe.text_encoder.get_input_embeddings().weight.data
    words[[3, 4]] = words[[4, 3]]


def other_padding(pipe):
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.padding_side = "left"


def pixels_as_they_are(pipe):
    pipe.image_processor.register_to_config(do_normalize=False)


def text_weights(pipe):
    next(pipe.text_encoder.parameters()).data[0] += 1


def shorter_texts(pipe):
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.model_max_length = 8


def a_lora(pipe):
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))


CHANGES = {
    one_weight: "unet",
    a_swap: "unet",
    half_precision: "unet",
    a_lora: "unet",
    freeu: "unet",
    exchanged_tokens: "text_encoder",
    other_padding: "tokenizer",
    pixels_as_they_are: "pipeline",
    sliced_attention: "unet",
    two_words_of_a_block: "unet",
    another_scheduler: "scheduler",
    another_spacing: "scheduler",
    own_noise_levels: "scheduler",
    another_decoder: "vae",
    tiles: "vae",
    text_weights: "text_encoder",
    shorter_texts: "tokenizer",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_decides_the_images_is_seen_and_placed(pipe, change):
    before = identity(pipe)
    change(pipe)
    after = identity(pipe)
    assert {name for name in before if before[name] != after[name]} == {CHANGES[change]}


def channels_last(pipe):
    pipe.unet.to(memory_format=torch.channels_last)


def compiled(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def after_a_call(pipe):
    tiny.run(pipe)


def in_parallel(pipe):
    pipe.unet = nn.DataParallel(pipe.unet)


def ready_to_train(pipe):
    pipe.unet.train().enable_gradient_checkpointing()


def a_hook(pipe):
    pipe.unet.register_forward_pre_hook(lambda module, args: None)


def a_lora_that_is_gone(pipe):
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    pipe.unload_lora_weights()


@pytest.mark.parametrize(
    "change",
    [
        channels_last,
        compiled,
        in_parallel,
        ready_to_train,
        after_a_call,
        a_hook,
        a_lora_that_is_gone,
    ],
    ids=lambda change: change.__name__,
)
def test_how_it_lies_and_what_wraps_it_do_not_count(pipe, change):
    before = identity(pipe)
    change(pipe)
    assert identity(pipe) == before


def test_a_processor_that_rounds_otherwise_does_not_count(monkeypatch):
    before = identity(tiny.stable_diffusion())
    made = DDIMScheduler.__init__

    def rounded(self, *args, **settings):
        made(self, *args, **settings)
        self.alphas_cumprod = self.alphas_cumprod * (1 + 1e-6)

    monkeypatch.setattr(DDIMScheduler, "__init__", rounded)
    there = tiny.stable_diffusion()
    assert identity(there) == before
    own_noise_levels(there)
    assert identity(there)["scheduler"] != before["scheduler"]


def test_a_pipeline_that_is_saved_and_opened_is_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    opened = type(pipe).from_pretrained(tmp_path)
    assert identity(opened) == identity(pipe)
    assert identity(opened, full=True) == identity(pipe, full=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda unet: unet.set_adapters(["default"], [0.5]),
        lambda unet: unet.disable_adapters(),
    ],
    ids=["weaker", "off"],
)
def test_how_strong_a_lora_is_counts(pipe, change):
    a_lora(pipe)
    before = identity(pipe)
    change(pipe.unet)
    assert identity(pipe)["unet"] != before["unet"]


def test_rows_of_a_large_layer_do_not_fall_on_each_other():
    layer = nn.Linear(768, 1000, bias=False)
    before = _sums(layer.weight.data)
    layer.weight.data[[10, 11]] = layer.weight.data[[11, 10]]
    assert not torch.equal(before, _sums(layer.weight.data))


@pytest.mark.parametrize("full", [False, True])
def test_a_full_hash_sees_as_much(pipe, full):
    before = identity(pipe, full=full)
    one_weight(pipe)
    assert identity(pipe, full=full)["unet"] != before["unet"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize:UserWarning")
def test_quantised_weights_are_told_apart(pipe):
    def quantised():
        copied = copy.copy(pipe)
        copied.text_encoder = torch.ao.quantization.quantize_dynamic(pipe.text_encoder, {nn.Linear})
        return identity(copied)["text_encoder"]

    first, again = quantised(), quantised()
    next(
        layer for layer in pipe.text_encoder.modules() if isinstance(layer, nn.Linear)
    ).weight.data.mul_(2)
    assert first == again != quantised()


def test_weights_of_a_few_bytes_are_told_apart(pipe):
    bias = pipe.vae.decoder.conv_out.bias.data
    seen = {identity(pipe)["vae"]}
    for place in range(len(bias)):
        bias[place] += 1
        seen.add(identity(pipe)["vae"])
    assert len(seen) == 1 + len(bias)


def test_settings_without_words_are_the_same_in_every_process(pipe):
    before = identity(pipe)["unet"]
    names = set()
    for setting in (object(), object(), {"b", "a"}, {"a", "b"}):
        pipe.unet.register_to_config(own=setting)
        names.add(identity(pipe)["unet"])
    assert len(names | {before}) == 3
