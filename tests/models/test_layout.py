import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdbench.models import layout, registry


class Machine:
    """A fake clock that a step moves on, by an amount that depends on the memory format."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds, self.module = 0.0, seconds, torch.nn.Conv2d(4, 4, 3)
        monkeypatch.setattr(layout.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(layout.torch, "set_num_threads", lambda count: None)

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
    layout.choose_layout(machine.module, machine.step)
    assert machine.last == chosen


def test_a_large_model_is_left_alone(monkeypatch):
    machine = Machine(monkeypatch, {False: 2.0, True: 1.0})
    layout.choose_layout(machine.module, machine.step)
    assert not machine.last
    assert machine.now == 4.0


def test_the_layout_says_how_the_pipeline_lies():
    pipe = StableDiffusionPipeline.from_pretrained(registry.MINI_SD)
    assert layout.layout(pipe)["memory_format"] == "contiguous"
    pipe.unet.to(memory_format=torch.channels_last)
    assert layout.layout(pipe) == {
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
    monkeypatch.setattr(layout, "choose_layout", choose)
    monkeypatch.setattr(layout, "_LAYOUTS", {})
    opened = [registry.load("mini-sd", dtype=dtype) for dtype in ("float32", "float32", "bfloat16")]
    assert asked == [opened[0].unet, opened[2].unet]
    assert [layout.layout(pipe)["memory_format"] for pipe in opened] == ["channels_last"] * 3


def test_the_layout_of_a_large_denoiser_is_not_chosen():
    layout.choose_layout(
        torch.nn.Linear(20_000, 20_000, device="meta"), lambda: pytest.fail("a step was run")
    )
