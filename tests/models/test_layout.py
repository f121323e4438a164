import numpy as np
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
        monkeypatch.setattr(layout, "busy_s", lambda: 0.0)
        monkeypatch.setattr(layout, "own_s", lambda: 0.0)

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


class Shared:
    """A fake machine of two cores, of which others take some: steps move its clock on.

    Two threads take 0.6 of the time of one. A thread whose core is shared waits in some steps, and
    the other one with it.
    """

    def __init__(self, monkeypatch, foreign_cores, waits_s=()):
        self.now, self.threads, self.waits = 0.0, 2, list(waits_s)
        self.module = torch.nn.Linear(1, 1)
        monkeypatch.setattr(layout.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(layout, "busy_s", lambda: (foreign_cores + 1) * self.now)
        monkeypatch.setattr(layout, "own_s", lambda: self.now)
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.threads)
        monkeypatch.setattr(torch, "set_num_threads", self.set_threads)

    def set_threads(self, count):
        self.threads = count

    def step(self):
        self.now += 0.1 if self.threads == 1 else 0.06
        if self.threads > 1 and self.waits:
            self.waits.append(self.waits.pop(0))
            self.now += self.waits[-1]


@pytest.mark.parametrize(
    ("foreign_cores", "waits_s", "threads"),
    [
        (0.0, [], 2),  # two threads are faster
        (0.0, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.4], 2),  # a spike now and then
        (1.0, [0.0, 0.3, 0.0, 0.0, 0.3], 1),  # barriers: fast in the middle, slow in every third
        (1.0, [0.02], 1),  # a bit faster, where others hold a core
        (1.0, [], 2),  # far faster all the same
        (0.3, [], 2),
    ],
)
def test_fewer_threads_run_where_another_process_holds_a_core(
    monkeypatch, foreign_cores, waits_s, threads
):
    machine = Shared(monkeypatch, foreign_cores, waits_s)
    layout.choose_layout(machine.module, machine.step)
    assert machine.threads == threads


def test_of_many_cores_those_that_are_held_are_left_to_others(monkeypatch):
    machine = Shared(monkeypatch, 3.0)
    machine.threads = 16
    tried = []
    monkeypatch.setattr(torch, "set_num_threads", lambda count: tried.append(count))
    layout.choose_layout(machine.module, machine.step)
    assert set(tried) == {8, 13, 16}


def test_noise_alone_changes_no_layout(monkeypatch):
    seconds = iter(np.random.default_rng(0).lognormal(-2, 0.3, 10_000))
    changed = 0
    for _ in range(50):
        machine = Machine(monkeypatch, {False: 0.0, True: 0.0})

        def step(machine=machine):
            machine.now += next(seconds)

        layout.choose_layout(machine.module, step)
        changed += machine.last
    assert changed <= 5


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
