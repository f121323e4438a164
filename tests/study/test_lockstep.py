"""Calls that take turns: each as alone, whatever runs between its steps."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from sdbench.instruments.clock import CpuClock
from sdbench.instruments.steps import StepProbe
from sdbench.study.lockstep import Alone, Ended, take_turns
from sdbench.variants.guidance import guided_by
from sdbench.variants.holds import held
from sdbench.variants.methods.cached import CachedOffset
from sdbench.variants.methods.interval import Interval
from sdbench.variants.schedule import GuidanceSchedule
from tests import families, tiny
from tests.families import schedulers

SCHEDULES = {
    "plain": lambda: None,
    "full": lambda: GuidanceSchedule.full,
    "none": lambda: GuidanceSchedule.none,
    "last": lambda: lambda steps: GuidanceSchedule.last(steps, 1),
    "interval": lambda: Interval(0.5, 5.0),
    "cached": lambda: CachedOffset(lambda steps: set(range(0, steps, 2))),
}


def arguments(pipe):
    """Those of a call, which nobody else has or changes."""
    return copy.deepcopy(pipe.call) | {"generator": torch.Generator("cpu").manual_seed(1)}


def observed(pipe, schedule, given, give_way=None):
    """Latents of a call, and what its probe saw but times."""
    probe = StepProbe(pipe.scheduler, CpuClock(), give_way)
    with guided_by(pipe, schedule(), listeners=[probe]), probe.call() as record:
        latents = pipe(**given)[0]
    seen = [
        {name: value for name, value in row.items() if not name.endswith("_s")}
        for row in record.steps
    ]
    return latents, seen


def in_turn(schedule, given, own, give_way):
    return observed(own, schedule, given, give_way)


def assert_as_alone(pipe, schedules):
    """Each call under its schedule gives bit for bit what it gives alone."""
    alone = [observed(pipe, schedule, arguments(pipe)) for schedule in schedules]
    calls = [partial(in_turn, schedule, arguments(pipe)) for schedule in schedules]
    before = [dict(vars(part)) for part in modules(pipe)]
    ended = take_turns(pipe, calls, seed="0")

    assert [dict(vars(part)) for part in modules(pipe)] == before
    for (latents, seen), end in zip(alone, ended, strict=True):
        assert isinstance(end, Ended), end
        torch.testing.assert_close(end.returned[0], latents, rtol=0, atol=0)
        torch.testing.assert_close(end.returned[1], seen, rtol=0, atol=0, equal_nan=True)


def modules(pipe):
    return [
        part
        for network in pipe.components.values()
        if isinstance(network, nn.Module)
        for part in network.modules()
    ]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_calls_of_every_family_are_as_alone(family):
    several = ["plain", "none", "last", "full"] if family == "sd" else ["none", "last"]
    assert_as_alone(tiny.taught(families.make(family)), [SCHEDULES[name] for name in several])


@pytest.mark.parametrize("family", ["sd", "sd3", "flux", "wan"])
def test_six_calls_of_every_kind_of_policy_are_as_alone(family):
    assert_as_alone(tiny.taught(families.make(family)), list(SCHEDULES.values()))


@pytest.mark.parametrize("scheduler", schedulers.DIFFUSION)
def test_calls_under_every_scheduler_are_as_alone(scheduler):
    pipe = families.make("sd")
    pipe.scheduler = schedulers.DIFFUSION[scheduler](pipe.scheduler.config)
    assert_as_alone(pipe, [SCHEDULES[name] for name in ("plain", "none", "last")])


@pytest.mark.parametrize("scheduler", schedulers.FLOW)
def test_calls_under_every_flow_scheduler_are_as_alone(scheduler):
    pipe = families.make("sd3")
    pipe.scheduler = schedulers.FLOW[scheduler](pipe.scheduler.config)
    assert_as_alone(pipe, [SCHEDULES[name] for name in ("plain", "none", "last")])


def told(pipe, name, log, steps=4, then=lambda: None):
    """A call that notes when it has taken a step."""

    def call(own, give_way):
        def noting(progress):
            log.append((name, progress))
            then()
            give_way(progress)

        probe = StepProbe(own.scheduler, CpuClock(), noting)
        with guided_by(own, None, listeners=[probe]), probe.call():
            return own(**arguments(pipe) | {"num_inference_steps": steps})[0]

    return call


def test_the_turn_goes_to_the_least_progress():
    pipe, log = tiny.stable_diffusion(), []
    take_turns(pipe, [told(pipe, "four", log, 4), told(pipe, "two", log, 2)], seed="0")
    had = {"four": -1.0, "two": -1.0}
    for name, progress in log:
        assert had[name] == min(had.values())
        had[name] = progress
    assert {name for name, _ in log[-2:]} == {"four", "two"}  # they end together


def test_equal_calls_come_in_another_order_from_step_to_step():
    pipe, log = tiny.stable_diffusion(), []
    calls = [told(pipe, name, log, 8) for name in "abc"]
    take_turns(pipe, calls, seed="0")
    orders = {tuple(name for name, _ in log[place : place + 3]) for place in range(0, 27, 3)}
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(orders) > 1


def test_what_other_calls_take_is_no_time_of_a_step():
    """A clock that moves only while others run shows no time at all."""
    pipe = tiny.stable_diffusion()
    now = [0]

    class Others:
        def mark(self):
            return now[0]

        def finish(self):
            pass

        def seconds(self, start, end):
            return end - start

    def call(own, give_way):
        def giving(progress):
            now[0] += 1
            give_way(progress)

        probe = StepProbe(own.scheduler, Others(), giving)
        with guided_by(own, None, listeners=[probe]), probe.call() as record:
            own(**arguments(pipe))
        return record

    for end in take_turns(pipe, [call, call], seed="0"):
        assert end.returned.latency_s == 0
        assert [row["latency_s"] for row in end.returned.steps] == [0] * 4


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_a_call_that_raises_leaves_the_pipeline_as_it_was(raised):
    pipe, log = tiny.stable_diffusion(), []
    expected = tiny.run(pipe)

    def stop():
        if len(log) > 5:
            raise raised("stopped")

    calls = [told(pipe, "a", log), told(pipe, "b", log, then=stop)]
    before = [dict(vars(part)) for part in modules(pipe)]
    with pytest.raises(raised, match="stopped"):
        take_turns(pipe, calls, seed="0")
    assert [dict(vars(part)) for part in modules(pipe)] == before
    assert torch.equal(tiny.run(pipe), expected)
    with guided_by(pipe, None):  # nothing holds the denoiser any more
        assert torch.equal(tiny.run(pipe), expected)


def test_what_a_call_changes_of_the_networks_does_not_act_on_others():
    """Attention processors, weights and attributes belong to the call that set them."""
    pipe = tiny.stable_diffusion()
    expected = tiny.run(pipe)

    def changing(own, give_way):
        own.unet.conv_in._parameters["weight"] = nn.Parameter(own.unet.conv_in.weight * 2)
        own.unet.note = "mine"
        own.enable_attention_slicing(1)
        return told(pipe, "a", [])(own, give_way)

    changed, untouched = take_turns(pipe, [changing, told(pipe, "b", [])], seed="0")
    assert not torch.equal(changed.returned, expected)
    assert changed.copied_bytes == pipe.unet.conv_in.weight.nbytes
    assert torch.equal(untouched.returned, expected)
    assert untouched.copied_bytes == 0
    assert not hasattr(pipe.unet, "note")


def test_a_call_that_holds_autocast_over_its_steps_takes_no_turns():
    pipe = tiny.stable_diffusion()
    expected = tiny.run(pipe)

    def casting(own, give_way):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return told(pipe, "a", [])(own, give_way)

    alone, other = take_turns(pipe, [casting, told(pipe, "b", [])], seed="0")
    assert alone == Alone("it holds autocast over its steps")
    assert torch.equal(other.returned, expected)
    assert not torch.is_autocast_enabled("cpu")


def test_another_pipeline_on_the_denoiser_is_refused():
    pipe = tiny.stable_diffusion()
    other = tiny.sharing(pipe)
    with (
        held(other, "guidance schedule"),
        pytest.raises(ValueError, match="shares its UNet2DConditionModel"),
    ):
        take_turns(pipe, [told(pipe, "a", [])], seed="0")


def test_weights_are_trained_or_frozen_as_before():
    pipe = tiny.stable_diffusion()
    pipe.unet.conv_in.weight.requires_grad_(False)

    def freezing(own, give_way):
        own.unet.requires_grad_(False)
        return told(pipe, "a", [])(own, give_way)

    take_turns(pipe, [freezing, told(pipe, "b", [])], seed="0")
    assert not pipe.unet.conv_in.weight.requires_grad
    assert pipe.unet.conv_out.weight.requires_grad
