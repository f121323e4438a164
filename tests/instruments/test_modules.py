"""Seconds and work by place: exact with a clock that counts, and equal to torch's own counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sdbench.instruments.layers import OTHER, Place
from sdbench.instruments.modules import AFTER, ModuleCounter, ModuleTimer, watching
from sdbench.models.pipeline import networks_of
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from tests import tiny


class Ticks:
    """A clock that moves by what layers take."""

    def __init__(self):
        self.now = 0.0

    def mark(self):
        return self.now

    def finish(self):
        pass

    def seconds(self, start, end):
        return end - start


class Takes(nn.Linear):
    """A layer that takes some time."""

    def __init__(self, clock, seconds):
        super().__init__(4, 4)
        self.clock, self.taken = clock, seconds

    def forward(self, x):
        self.clock.now += self.taken
        return super().forward(x)


class Inner(nn.Module):
    """A block whose own additions take time between its layers."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.attention_norm = nn.LayerNorm(4)
        self.first, self.second = Takes(clock, 2.0), Takes(clock, 3.0)

    def forward(self, x):
        x = self.first(x)
        self.clock.now += 0.5
        return self.second(x)


def test_every_second_belongs_to_one_place():
    clock = Ticks()
    net = nn.ModuleDict({"blocks": nn.ModuleList([Inner(clock), Inner(clock)])})
    timer = ModuleTimer({"net": net}, clock, watches_first=True)
    with timer.call():
        for block in net["blocks"]:
            block(torch.zeros(1, 4))
        clock.now += 0.25
    (whole,) = timer.taken
    assert whole.name == AFTER
    assert whole.places == {
        Place("pipeline"): 0.25,
        Place("net", "blocks.0", OTHER): 0.5,
        Place("net", "blocks.0", "linear"): 5.0,
        Place("net", "blocks.1", OTHER): 0.5,
        Place("net", "blocks.1", "linear"): 5.0,
    }
    assert whole.whole_s == sum(whole.places.values())


class Costly(Ticks):
    """A clock of which every mark takes two seconds."""

    def mark(self):
        before = self.now
        self.now += 2.0
        return before


def test_what_watching_takes_is_known_by_place():
    """With the time of every mark taken off, each place has what it has on a clock that is free."""

    def places(clock):
        net = nn.ModuleDict({"blocks": nn.ModuleList([Inner(clock), Inner(clock)])})
        timer = ModuleTimer({"net": net}, clock, watches_first=True)
        with timer.call():
            for block in net["blocks"]:
                block(torch.zeros(1, 4))
        return timer.taken[0]

    free, costly = places(Ticks()), places(Costly())
    added = watching(costly.entered, costly.whole_s - free.whole_s)
    assert sum(added.values()) == costly.whole_s - free.whole_s > 0
    less = {place: costly.places[place] - added[place] for place in costly.places}
    assert less == pytest.approx(free.places)
    assert set(watching(costly.entered, -1.0).values()) == {0.0}  # noise, no saving


def timed(pipe, *, watches_first):
    timer = ModuleTimer(networks_of(pipe), Counting(), watches_first=watches_first)
    schedule = GuidanceSchedule.every(8, 2)
    with guided_by(pipe, schedule, listeners=[timer]), timer.call():
        tiny.run(pipe, num_inference_steps=8)
    return timer.taken


class Counting(Ticks):
    """A clock that moves by one at every mark."""

    def mark(self):
        self.now += 1
        return self.now


@pytest.mark.parametrize("watches_first", [True, False])
def test_two_steps_are_watched_and_two_are_not(watches_first):
    pipe = tiny.stable_diffusion()
    taken = timed(pipe, watches_first=watches_first)
    assert [one.name for one in taken[1:-1]] == [True, False] * 4
    watched = [one.places is not None for one in taken[1:-1]]
    turns = [True, True, False, False, True, True, False, False]
    assert watched == [turn == watches_first for turn in turns]
    assert [taken[0].name, taken[-1].name] == ["text", "decode"]
    for one in taken:
        assert one.places is None or one.whole_s == sum(one.places.values())
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_a_call_that_fails_leaves_no_hooks():
    pipe = tiny.stable_diffusion()
    timer = ModuleTimer(networks_of(pipe), Ticks(), watches_first=True)
    with pytest.raises(RuntimeError, match="broken"), timer.call():
        raise RuntimeError("broken")
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_work_by_place_adds_up_to_what_torch_counts():
    pipe = tiny.stable_diffusion()
    counter = ModuleCounter(networks_of(pipe))
    schedule = GuidanceSchedule.every(4, 2)
    with guided_by(pipe, schedule, listeners=[counter]), counter.call():
        tiny.run(pipe, num_inference_steps=4)
    with guided_by(pipe, schedule), FlopCounterMode(display=False) as whole:
        tiny.run(pipe, num_inference_steps=4)

    assert counter.unknown == ""
    assert [guided for guided, _ in counter.steps] == [True, False, True, False]
    work = [*counter.around.values(), *(own for _, own in counter.steps)]
    assert sum(sum(own.flop.values()) for own in work) == whole.get_total_flops() > 0
    guided, unguided = (sum(own.flop.values()) for _, own in counter.steps[:2])
    assert guided == 2 * unguided


def test_two_calls_of_a_guided_step_belong_to_it():
    pipe = tiny.flux()
    counter = ModuleCounter(networks_of(pipe))
    schedule = GuidanceSchedule.every(4, 2)
    with guided_by(pipe, schedule, listeners=[counter]), counter.call():
        tiny.run(pipe, num_inference_steps=4)
    guided, unguided = (sum(own.flop.values()) for _, own in counter.steps[2:])
    assert guided == 2 * unguided > 0


def test_what_computes_and_has_no_formula_is_named():
    class Solves(nn.Module):
        def forward(self, matrix):
            return torch.linalg.det(matrix)

    net = Solves()
    counter = ModuleCounter({"net": net})
    with counter.call(), torch.no_grad():
        net(torch.eye(3))
    assert counter.unknown == "aten._linalg_det.default"


def test_bytes_are_those_of_what_is_read_and_written():
    layer = nn.Linear(4, 8, bias=False)
    counter = ModuleCounter({"net": nn.Sequential(layer)})
    with counter.call(), torch.no_grad():
        layer(torch.zeros(3, 4))
    (work,) = counter.around.values()
    place = Place("net", "", "linear")
    assert work.moved_bytes[place] == 4 * (3 * 4 + 4 * 8 + 3 * 8)  # views move nothing
    assert work.flop[place] == 2 * 3 * 4 * 8
