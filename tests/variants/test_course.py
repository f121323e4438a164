"""Loops that end early: asked for, or broken off by an exception that the caller catches."""

import functools
import warnings
from contextlib import contextmanager, nullcontext, suppress

import pytest
import torch
from diffusers import HeunDiscreteScheduler

from sdbench.models.pipeline import denoiser_of
from sdbench.variants.adapters import applied
from sdbench.variants.branches import Branches, Trunk
from sdbench.variants.guidance import guided_by
from sdbench.variants.methods.adaptive import Adaptive
from sdbench.variants.methods.cached import CachedOffset
from sdbench.variants.registry import parse
from sdbench.variants.schedule import GuidanceSchedule
from tests import tiny
from tests.tiny import run
from tests.variants.test_rows import NestedPipeline

MASK = [True, False, False, True]


class Broken(Exception):
    """Raised on purpose."""


def interrupting(last):
    """A callback that asks the pipeline to end after a step."""

    def callback(pipe, step, timestep, tensors):
        pipe._interrupt = step >= last
        return tensors

    return {"callback_on_step_end": callback}


def raising(last, error=Broken):
    def callback(pipe, step, timestep, tensors):
        if step == last:
            raise error
        return tensors

    return {"callback_on_step_end": callback}


@contextmanager
def broken(owner, name, *, call, error=Broken):
    """Make a method fail at one of its calls."""
    original, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call + 1:
            raise error
        return original(*args, **kwargs)

    failing = functools.wraps(original)(failing)
    setattr(owner, name, failing)
    try:
        yield
    finally:
        delattr(owner, name)


@pytest.mark.parametrize("last", [0, 2, 3], ids=["first", "third", "last"])
@pytest.mark.parametrize("schedule", [None, GuidanceSchedule.none], ids=["observed", "scheduled"])
@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_an_interrupted_loop_gives_its_latents_and_a_shorter_trace(family, schedule, last):
    pipe = tiny.FAMILIES[family]()
    plain = run(pipe, **interrupting(last))
    with guided_by(pipe, schedule) as trace:
        latents = run(pipe, **interrupting(last))
    assert torch.equal(latents, plain) == (schedule is None)
    assert len(trace.steps) == last + 1
    assert trace.calls.to_dict("records") == [
        {"call": 0, "iterations": 4, "steps": last + 1, "complete": last == 3}
    ]


def test_a_loop_interrupted_before_its_first_step_has_a_row_too():
    pipe = tiny.stable_diffusion()
    prepare = pipe.prepare_extra_step_kwargs

    def interrupt(*args, **kwargs):
        pipe._interrupt = True
        return prepare(*args, **kwargs)

    pipe.prepare_extra_step_kwargs = interrupt
    with guided_by(pipe, GuidanceSchedule.none) as trace:
        run(pipe)
    assert trace.calls.values.tolist() == [[0, 4, 0, False]]


def test_two_interrupted_calls_and_a_whole_one():
    pipe = tiny.stable_diffusion()
    with guided_by(pipe, GuidanceSchedule.from_mask(MASK)):
        expected = run(pipe)
    with guided_by(pipe, GuidanceSchedule.from_mask(MASK)) as trace:
        run(pipe, **interrupting(1))
        run(pipe, **interrupting(0))
        assert torch.equal(run(pipe), expected)
    assert trace.calls.steps.tolist() == [2, 1, 4]
    assert trace.calls.complete.tolist() == [False, False, True]
    assert trace.steps.rows.tolist() == [4, 2, 4, 4, 2, 2, 4]


FAILURES = {
    "callback": (lambda pipe: nullcontext(), raising(1), 2),
    "denoiser": (lambda pipe: broken(denoiser_of(pipe), "forward", call=2), {}, 2),
    "first denoiser call": (lambda pipe: broken(denoiser_of(pipe), "forward", call=0), {}, 0),
    "decoder": (
        lambda pipe: broken(pipe.vae, "decode", call=0),
        {"output_type": "pt"},
        4,
    ),
    "interrupt of the keyboard": (lambda pipe: nullcontext(), raising(2, KeyboardInterrupt), 3),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_after_a_failure_that_is_caught_the_next_call_is_right(failure):
    pipe = tiny.stable_diffusion()
    plain = run(pipe)
    breaking, changes, steps = FAILURES[failure]
    with guided_by(pipe, None) as trace:
        with breaking(pipe), pytest.raises((Broken, KeyboardInterrupt)):
            run(pipe, **changes)
        assert torch.equal(run(pipe), plain)
    assert trace.calls.steps.tolist() == [steps, 4]
    assert trace.calls.complete.tolist() == [steps == 4, True]


def test_a_failure_in_the_scheduler_leaves_its_step_out():
    pipe = tiny.stable_diffusion()
    plain = run(pipe)
    with broken(pipe.scheduler, "step", call=2), guided_by(pipe, None) as trace:
        with pytest.raises(Broken):
            run(pipe)
        assert torch.equal(run(pipe), plain)
    assert trace.calls.steps.tolist() == [2, 4]


@pytest.mark.parametrize("call", [2, 3], ids=["between steps", "between the two calls of a step"])
def test_two_calls_in_a_step_may_fail_between(call):
    pipe = tiny.flux()
    plain = run(pipe)
    with guided_by(pipe, None) as trace:
        with broken(pipe.transformer, "forward", call=call), pytest.raises(Broken):
            run(pipe)
        assert torch.equal(run(pipe), plain)
    assert trace.calls.steps.tolist() == [1, 4]
    assert trace.steps.rows.tolist() == [4] * 5


POLICIES = {
    "mask": lambda: GuidanceSchedule.from_mask(MASK),
    "adaptive": lambda: Adaptive(0.9),
    "cached": lambda: CachedOffset(lambda steps: {0, 2}),
}


@pytest.mark.parametrize("family", ["sd", "flux"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("ending", [interrupting(2), raising(1)], ids=["asked for", "failed"])
def test_a_policy_forgets_the_loop_that_ended_early(family, policy, ending):
    pipe = tiny.FAMILIES[family]()
    with guided_by(pipe, POLICIES[policy]()):
        expected = run(pipe)
    with guided_by(pipe, POLICIES[policy]()) as trace:
        with suppress(Broken):
            run(pipe, **ending)
        assert torch.equal(run(pipe), expected)
    assert trace.calls.complete.tolist() == [False, True]


@pytest.mark.parametrize("text", ["firstblock:0.05", "taylorseer:3", "pab:2", "fastercache:2"])
@pytest.mark.parametrize("ending", [interrupting(2), raising(2)], ids=["asked for", "failed"])
def test_a_cache_forgets_the_loop_that_ended_early(text, ending):
    expected = None
    for endings in ([], [ending]):
        pipe = tiny.flux()
        with applied(pipe, parse(text), guidance_scale=4.0):
            for changes in endings:
                with suppress(Broken):
                    run(pipe, num_inference_steps=6, **changes)
            latents = run(pipe, num_inference_steps=6)
        expected = latents if expected is None else expected
        assert torch.equal(latents, expected)


def test_branches_of_a_loop_that_ended_early_are_refused_in_the_next():
    pipe = tiny.stable_diffusion()
    call = {"prompt": [tiny.PROMPTS[0]] * 2, "generator": None}
    call["generator"] = [torch.Generator("cpu").manual_seed(1) for _ in range(2)]
    masks = Branches([(True,) * 4, (False,) * 4], 1, Trunk(), max_rows=4)
    with guided_by(pipe, masks):
        run(pipe, **call, **interrupting(1))
        with pytest.raises(ValueError, match="these branches have run: each call needs its own"):
            run(pipe, **call)


def test_a_call_that_is_refused_has_a_row_and_no_warning():
    pipe = tiny.stable_diffusion()
    with guided_by(pipe, GuidanceSchedule.full(3)) as trace:
        with pytest.raises(ValueError, match="the schedule has 3 steps but the loop runs 4"):
            run(pipe)
        run(pipe, num_inference_steps=3)
    assert trace.calls.values.tolist() == [[0, 4, 0, False], [1, 3, 3, True]]
    assert trace.steps.call.tolist() == [1] * 3


def test_a_loop_that_is_broken_off_under_a_schedule_is_warned_of():
    pipe = tiny.stable_diffusion()
    ended = "^call 2 ended after 1 of 4 steps$"  # a call after the first says that it was seen to
    block = guided_by(pipe, GuidanceSchedule.none)
    block.__enter__()
    for last in (2, 9, 0):
        with suppress(Broken):
            run(pipe, **raising(last))
    with pytest.warns(RuntimeWarning, match=ended) as caught:
        block.__exit__(None, None, None)
    assert caught[0].filename == __file__


def test_a_loop_that_ends_early_of_itself_is_warned_of_whatever_follows():
    pipe = tiny.stable_diffusion()
    block = guided_by(pipe, GuidanceSchedule.full)
    block.__enter__()
    pipe.scheduler.set_timesteps(4)
    pipe.prepare_latents(2, 4, 16, 16, torch.float32, "cpu", None)
    with pipe.progress_bar(total=4):
        rows = torch.randn(4, 4, 8, 8)
        pipe.unet(
            rows, pipe.scheduler.timesteps[0], encoder_hidden_states=torch.zeros(4, 3, tiny.WIDTH)
        )
        pipe.scheduler.step(rows[:2], pipe.scheduler.timesteps[0], rows[:2])
    run(pipe)
    with pytest.warns(RuntimeWarning, match="^call 0 ended after 1 of 4 steps$"):
        block.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("schedule", "ending"),
    [(None, raising(1)), (GuidanceSchedule.none, interrupting(1)), (GuidanceSchedule.none, {})],
    ids=["only observed", "asked for", "complete"],
)
def test_no_other_loop_is_warned_of(schedule, ending):
    pipe = tiny.stable_diffusion()
    with (
        warnings.catch_warnings(action="error"),
        guided_by(pipe, schedule),
        suppress(Broken),
    ):
        run(pipe, **ending)


def test_an_exception_that_leaves_the_block_comes_alone():
    pipe = tiny.stable_diffusion()
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(Broken),
        guided_by(pipe, GuidanceSchedule.none),
    ):
        run(pipe, **raising(1))


def test_a_pipeline_without_a_progress_bar_may_fail_too():
    class Failing(NestedPipeline):
        """Its second call is whole."""

        def __call__(self, *, fails=False):
            self.scheduler.set_timesteps(2)
            self.prepare_latents()
            if fails:
                self.transformer(
                    torch.ones(4, 1),
                    nested={
                        "list": [torch.ones(4, 1), (torch.ones(4, 1),)],
                        "scalar": torch.tensor(1.0),
                    },
                    image_rotary_emb=(torch.zeros(4, 9),),
                    txt_ids=torch.zeros(4, 3),
                )
                raise Broken
            super().__call__()

    pipe = Failing()
    with guided_by(pipe, GuidanceSchedule.full) as trace:
        with pytest.raises(Broken):
            pipe(fails=True)
        pipe()
    assert trace.calls.steps.tolist() == [0, 2]


def test_a_loop_of_second_order_counts_its_own_iterations():
    pipe = tiny.stable_diffusion(HeunDiscreteScheduler)
    with guided_by(pipe, None) as trace:
        run(pipe)
    assert trace.calls.values.tolist() == [[0, 7, 7, True]]


def test_a_short_loop_is_refused_where_a_whole_one_is_needed():
    pipe = tiny.stable_diffusion()
    with guided_by(pipe, None) as trace:
        trace.require_complete()
        run(pipe)
        trace.require_complete()
        run(pipe, **interrupting(2))
        with pytest.raises(RuntimeError, match="the loop ended after 3 of 4 steps"):
            trace.require_complete()


def test_the_calls_of_nothing_are_an_empty_table():
    with guided_by(tiny.stable_diffusion(), None) as trace:
        pass
    assert trace.calls.empty
    assert list(trace.calls) == ["call", "iterations", "steps", "complete"]
