import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdbench.models import registry


def test_mini_sd_opens_with_stock_diffusers_in_float32():
    pipe = StableDiffusionPipeline.from_pretrained(registry.MINI_SD)
    assert {module.dtype for module in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}


def test_mini_sd_is_small_enough_to_ship():
    folder = registry.MINI_SD.parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 20e6


def test_a_pipeline_is_returned_as_it_is():
    pipe = object()
    assert registry.load(pipe) is pipe


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("sd99", "unknown model 'sd99'; there are: mini-sd"),
        ("nobody/nothing", "model 'nobody/nothing' cannot be opened"),
    ],
)
def test_an_unknown_model_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        registry.load(model)


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no diffusers pipeline"):
        registry.load(tmp_path)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="unknown dtype 'int3'; there are: float32"):
        registry.load("mini-sd", dtype="int3")


class Machine:
    """A fake clock that a step moves on, by an amount that depends on the memory format."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds, self.module = 0.0, seconds, torch.nn.Conv2d(4, 4, 3)
        monkeypatch.setattr(registry.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(registry.torch, "set_num_threads", lambda count: None)

    @property
    def last(self):
        return self.module.weight.is_contiguous(memory_format=torch.channels_last)

    def step(self):
        self.now += self.seconds[self.last]


@pytest.mark.parametrize(
    ("contiguous_s", "last_s", "chosen"), [(0.2, 0.1, True), (0.1, 0.2, False), (0.1, 0.098, False)]
)
def test_the_memory_format_changes_only_where_it_pays(monkeypatch, contiguous_s, last_s, chosen):
    machine = Machine(monkeypatch, {False: contiguous_s, True: last_s})
    registry.choose_layout(machine.module, machine.step)
    assert machine.last == chosen


def test_a_large_model_is_left_alone(monkeypatch):
    machine = Machine(monkeypatch, {False: 2.0, True: 1.0})
    registry.choose_layout(machine.module, machine.step)
    assert not machine.last
    assert machine.now == 4.0


def test_the_layout_says_how_the_pipeline_lies():
    pipe = StableDiffusionPipeline.from_pretrained(registry.MINI_SD)
    assert registry.layout(pipe)["memory_format"] == "contiguous"
    pipe.unet.to(memory_format=torch.channels_last)
    assert registry.layout(pipe) == {
        "device": "cpu",
        "memory_format": "channels_last",
        "threads": torch.get_num_threads(),
    }


def test_a_layout_is_chosen_once_for_each_form(monkeypatch):
    asked = []

    def choose(denoiser, step):
        asked.append(denoiser)
        denoiser.to(memory_format=torch.channels_last)
        counted["threads"] = 1

    counted = {"threads": 4}
    monkeypatch.setattr(torch, "get_num_threads", lambda: counted["threads"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: counted.update(threads=count))
    monkeypatch.setattr(registry, "choose_layout", choose)
    monkeypatch.setattr(registry, "_LAYOUTS", {})
    opened = [registry.load("mini-sd", dtype=dtype) for dtype in ("float32", "float32", "bfloat16")]
    assert asked == [opened[0].unet, opened[2].unet]
    assert [registry.layout(pipe)["memory_format"] for pipe in opened] == ["channels_last"] * 3
