"""Pipelines that share networks, each under its own schedule."""

import itertools
import threading
from contextlib import ExitStack

import pytest
import torch
from diffusers import AutoPipelineForImage2Image

from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from tests import tiny
from tests.tiny import run

MASKS = {"a": [True, False, False, True], "b": [False] * 4, "c": [True, True, False, False]}
ROWS = {name: [4 if guided else 2 for guided in mask] for name, mask in MASKS.items()}


def pipelines(make=tiny.stable_diffusion):
    """Three that share every network."""
    first = make()
    return {"a": first, "b": tiny.sharing(first), "c": tiny.sharing(first)}


def alone(pipes):
    """The latents of each under its own schedule, with no other one at work."""
    latents = {}
    for name, pipe in pipes.items():
        with guided_by(pipe, GuidanceSchedule.from_mask(MASKS[name])):
            latents[name] = run(pipe)
    return latents


def own_attributes(pipes):
    """Everything that is set on instances, by identity, so that nothing is left behind."""
    owners = [
        owner
        for pipe in pipes.values()
        for owner in (pipe, pipe.scheduler, pipe.unet, getattr(pipe, "controlnet", None))
        if owner is not None
    ]
    names = ("encode_prompt", "prepare_latents", "progress_bar", "step", "set_timesteps")
    names += ("__deepcopy__", "_compiled_call_impl")
    placed = [vars(owner).get(name) for owner in owners for name in names]
    return [set(vars(owner)) for owner in owners], placed


def blocks_of(pipes, policies=MASKS):
    return {
        name: guided_by(pipe, GuidanceSchedule.from_mask(policies[name]))
        for name, pipe in pipes.items()
    }


@pytest.mark.parametrize("order", list(itertools.permutations("abc")), ids="".join)
def test_schedules_on_a_shared_denoiser_are_left_in_any_order(order):
    pipes = pipelines()
    plain, expected, before = run(pipes["a"]), alone(pipes), own_attributes(pipes)
    blocks = blocks_of(pipes)
    traces = {name: block.__enter__() for name, block in blocks.items()}
    for number, name in enumerate(order):
        blocks[name].__exit__(None, None, None)
        for other in order[number + 1 :]:
            assert torch.equal(run(pipes[other]), expected[other])
    assert own_attributes(pipes) == before
    assert torch.equal(run(pipes[order[0]]), plain)
    assert [traces[name].steps.rows.tolist() for name in order] == [
        ROWS[name] * number for number, name in enumerate(order)
    ]


def test_one_thread_may_call_them_in_turns():
    pipes = pipelines()
    expected = alone(pipes)
    with ExitStack() as undo:
        traces = {name: undo.enter_context(block) for name, block in blocks_of(pipes).items()}
        for name in "abcbaacb":
            assert torch.equal(run(pipes[name]), expected[name])
    assert traces["a"].steps.rows.tolist() == ROWS["a"] * 3


@pytest.mark.parametrize("outer", "ab")
def test_nested_blocks_each_keep_their_schedule(outer):
    pipes = pipelines()
    expected = alone(pipes)
    inner = {"a": "b", "b": "a"}[outer]
    blocks = blocks_of(pipes)
    with blocks[outer]:
        with blocks[inner]:
            assert torch.equal(run(pipes[outer]), expected[outer])
            assert torch.equal(run(pipes[inner]), expected[inner])
        assert torch.equal(run(pipes[outer]), expected[outer])


def test_a_call_within_the_callback_of_another_ones_call():
    pipes, shown = pipelines(), []
    expected = alone(pipes)

    def show(pipe, step, timestep, tensors):
        shown.append(run(pipes["b"]))
        return tensors

    blocks = blocks_of(pipes)
    with blocks["a"] as outer, blocks["b"] as inner:
        assert torch.equal(run(pipes["a"], callback_on_step_end=show), expected["a"])
    assert all(torch.equal(latents, expected["b"]) for latents in shown)
    assert outer.steps.rows.tolist() == ROWS["a"]
    assert inner.steps.rows.tolist() == ROWS["b"] * 4


class Broken(Exception):
    """Raised on purpose."""


def broken(pipe, step, timestep, tensors):
    raise Broken


@pytest.mark.parametrize("first", "ab")
def test_a_failure_in_one_leaves_the_other_at_work(first):
    pipes = pipelines()
    expected, before = alone(pipes), own_attributes(pipes)
    second = {"a": "b", "b": "a"}[first]
    blocks = blocks_of(pipes)
    with blocks[second] as trace:
        with pytest.raises(Broken), blocks[first]:
            run(pipes[first], callback_on_step_end=broken)
        assert torch.equal(run(pipes[second]), expected[second])
    assert trace.steps.rows.tolist() == ROWS[second]
    assert own_attributes(pipes) == before


def test_after_a_failed_call_a_plain_pipeline_is_still_refused():
    pipes = pipelines()
    with guided_by(pipes["a"], None) as trace:
        with pytest.raises(Broken):
            run(pipes["a"], callback_on_step_end=broken)
        with pytest.raises(RuntimeError, match="the denoiser ran outside the loop"):
            run(pipes["b"])
    assert len(trace.steps) == 1


def at_once(works):
    """Run each in its own thread, all from the same moment on; what they return."""
    together, results = threading.Barrier(len(works)), {}

    def run_one(name, work):
        together.wait()
        try:
            results[name] = work()
        except Exception as error:  # noqa: BLE001 - told by the thread that waits
            results[name] = error

    threads = [threading.Thread(target=run_one, args=item) for item in works.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("make", [tiny.stable_diffusion, tiny.controlnet], ids=["sd", "controlnet"])
def test_threads_at_once_make_the_latents_of_each_alone(make):
    pipes = pipelines(make)
    for pipe in pipes.values():
        pipe.tokenizer = pipes["a"].tokenizer  # which no two threads may use at once
    expected, before = alone(pipes), own_attributes(pipes)

    def work(name):
        def repeated():
            latents = []
            for _ in range(3):
                with guided_by(pipes[name], GuidanceSchedule.from_mask(MASKS[name])) as trace:
                    latents.append(run(pipes[name]))
                assert trace.steps.rows.tolist() == ROWS[name]
            return latents

        return repeated

    results = at_once({name: work(name) for name in pipes})
    for name, latents in results.items():
        assert not isinstance(latents, Exception), latents
        assert all(torch.equal(found, expected[name]) for found in latents)
    assert own_attributes(pipes) == before


def test_one_is_only_observed():
    pipes = pipelines()
    plain, expected = run(pipes["a"]), alone(pipes)
    with guided_by(pipes["a"], None) as observed, guided_by(pipes["b"], GuidanceSchedule.none):
        assert torch.equal(run(pipes["a"]), plain)
        assert torch.equal(run(pipes["b"]), expected["b"])
    assert observed.steps.rows.tolist() == [4] * 4


def test_a_shared_controlnet_evaluates_the_rows_of_its_caller():
    pipes, rows = pipelines(tiny.controlnet), []
    expected = alone(pipes)
    layer = pipes["a"].controlnet.conv_in
    layer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    blocks = blocks_of(pipes)
    with blocks["a"], blocks["b"]:
        assert torch.equal(run(pipes["b"]), expected["b"])
        assert torch.equal(run(pipes["a"]), expected["a"])
    assert rows == ROWS["b"] + ROWS["a"]


def test_pipelines_with_the_same_scheduler_are_refused_and_told_why():
    first = tiny.stable_diffusion()
    second = AutoPipelineForImage2Image.from_pipe(first)
    with guided_by(first, None), pytest.raises(ValueError, match="has the same scheduler as a"):
        guided_by(second, None).__enter__()
    assert "step" not in vars(first.scheduler)


def test_a_copy_of_the_scheduler_is_enough_for_a_pipeline_made_from_another():
    first = tiny.stable_diffusion()
    second = AutoPipelineForImage2Image.from_pipe(first, scheduler=tiny.scheduler())
    second.set_progress_bar_config(disable=True)
    call = tiny.image_to_image().call
    with guided_by(first, GuidanceSchedule.none), guided_by(second, GuidanceSchedule.full) as trace:
        run(first)
        second(**call)
    assert trace.steps.rows.tolist() == [4] * 3


def test_a_second_schedule_is_refused_also_with_another_scheduler():
    pipe = tiny.stable_diffusion()
    with guided_by(pipe, None):
        pipe.scheduler = tiny.scheduler()
        with pytest.raises(ValueError, match="already runs under a guidance schedule"):
            guided_by(pipe, None).__enter__()


def test_of_two_threads_one_gets_the_pipeline():
    pipe, leave = tiny.stable_diffusion(), threading.Event()

    def work():
        with guided_by(pipe, None):
            return leave.wait(0.2)

    results = at_once(dict.fromkeys("ab", work))
    refused = [found for found in results.values() if isinstance(found, ValueError)]
    assert len(refused) == 1
    assert "already runs under" in str(refused[0])
