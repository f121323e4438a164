from contextlib import contextmanager, nullcontext

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import DDIMScheduler, HeunDiscreteScheduler, PNDMScheduler
from diffusers.callbacks import SDCFGCutoffCallback

from sdbench.models.pipeline import denoiser_of
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Listener
from tests import tiny
from tests.tiny import run

# diffusers' Euler and Heun schedulers pass tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
ON_OFF_ON = [True, False, False, True]


def mask_of(pipe, mask):
    """A mask of four, cut where image-to-image runs only three steps."""
    return mask[: 3 if "strength" in pipe.call else 4]


@every_family
def test_full_schedule_and_observing_are_bitwise_the_plain_pipeline(family):
    pipe = tiny.FAMILIES[family]()
    plain = run(pipe)
    for schedule in (GuidanceSchedule.full, None):
        with guided_by(pipe, schedule) as trace:
            assert torch.equal(run(pipe), plain)
        assert trace.steps.guided.all()


@every_family
@pytest.mark.parametrize("mask", [ON_OFF_ON, [False] * 4], ids=["on-off-on", "none"])
def test_a_mask_equals_overwriting_the_unconditional_prediction(family, mask):
    pipe = tiny.FAMILIES[family]()
    mask = mask_of(pipe, mask)
    plain = run(pipe)
    with tiny.overwritten(pipe, mask, two_calls=family in tiny.TWO_CALLS):
        expected = run(pipe)
    with guided_by(pipe, GuidanceSchedule.from_mask(mask)):
        tiny.assert_same_latents(run(pipe), expected)
    assert not torch.allclose(plain, expected, rtol=1e-3, atol=1e-3)  # the oracle tells masks apart


@pytest.mark.parametrize(
    "changes",
    [
        {"num_images_per_prompt": 2},
        {"guidance_rescale": 0.7},
        {
            "negative_prompt": ["a small black ring on a red background"] * 2,
            "num_images_per_prompt": 2,
        },
        {"prompt": tiny.PROMPTS[0], "height": 24, "width": 8},
        {"output_type": "pt", "eta": 1.0},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_the_mask_holds_for_the_arguments_of_a_call(changes):
    pipe = tiny.stable_diffusion()
    with tiny.overwritten(pipe, ON_OFF_ON):
        expected = run(pipe, **changes)
    with guided_by(pipe, GuidanceSchedule.from_mask(ON_OFF_ON)):
        tiny.assert_same_latents(run(pipe, **changes), expected)


@pytest.mark.parametrize("cutoff", [0, 2])
def test_the_last_steps_are_bitwise_those_of_the_cutoff_callback(cutoff):
    pipe = tiny.stable_diffusion()
    plain = run(pipe, prompt=tiny.PROMPTS[0])
    callback = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=cutoff)
    cut = run(pipe, prompt=tiny.PROMPTS[0], callback_on_step_end=callback)
    # The callback acts when the step of its index has run: that step and those before are guided.
    with guided_by(pipe, GuidanceSchedule.last(4, 3 - cutoff)):
        assert torch.equal(run(pipe, prompt=tiny.PROMPTS[0]), cut)
    assert not torch.equal(cut, plain)


@every_family
@pytest.mark.parametrize(
    "mask", [[True] * 4, ON_OFF_ON, [False] * 4], ids=["full", "on-off-on", "none"]
)
def test_the_trace_says_what_ran(family, mask):
    pipe = tiny.taught(tiny.FAMILIES[family]())
    mask = mask_of(pipe, mask)
    with (
        guided_by(pipe, GuidanceSchedule.from_mask(mask)) as trace,
        tiny.counted_rows(pipe) as counted,
    ):
        run(pipe)
    evaluations = [1 + guided if family in tiny.TWO_CALLS else 1 for guided in mask]
    assert trace.steps.guided.tolist() == mask
    assert trace.steps.rows.tolist() == [4 if guided else 2 for guided in mask]
    assert trace.steps.forwards.tolist() == evaluations
    assert len(counted) == sum(evaluations)
    assert sum(counted) == trace.steps.rows.sum()


def test_the_trace_keeps_the_steps_of_every_call():
    pipe = tiny.stable_diffusion()
    with (
        guided_by(pipe, GuidanceSchedule.from_mask(ON_OFF_ON)) as trace,
        tiny.counted_rows(pipe) as counted,
    ):
        first, second = run(pipe), run(pipe, num_images_per_prompt=2)
    assert (len(first), len(second)) == (2, 4)
    assert trace.steps.call.tolist() == [0] * 4 + [1] * 4
    assert trace.steps.step.tolist() == [0, 1, 2, 3] * 2
    assert trace.steps.rows.tolist() == counted == [4, 2, 2, 4, 8, 4, 4, 8]


def test_the_trace_of_nothing_is_an_empty_table():
    with guided_by(tiny.stable_diffusion(), GuidanceSchedule.full) as trace:
        pass
    assert trace.steps.empty
    assert "guided" in trace.steps


@every_family
def test_two_runs_in_a_row_are_identical(family):
    pipe = tiny.FAMILIES[family]()
    images = []
    for _ in range(2):
        with guided_by(pipe, lambda steps: GuidanceSchedule.last(steps, 2)):
            images += [run(pipe), run(pipe)]
    assert all(torch.equal(image, images[0]) for image in images)


def attributes(pipe):
    """What could be left behind: every attribute's name, and the identity of hooks and methods."""
    denoiser = denoiser_of(pipe)
    hooks = {name: list(value) for name, value in vars(denoiser).items() if name.endswith("hooks")}
    methods = [
        pipe.prepare_latents,
        pipe.scheduler.set_timesteps,
        pipe.scheduler.step,
        denoiser.forward,
    ]
    return [*(set(vars(owner)) for owner in (pipe, pipe.scheduler, denoiser)), hooks, methods]


class Broken(Exception):
    """Raised on purpose."""


def fail_in_the_callback(pipe):
    def callback(pipe, step, timestep, tensors):
        if step == 1:
            raise Broken
        return tensors

    return nullcontext(), {"callback_on_step_end": callback}


def fail_in_the_denoiser(pipe):
    @contextmanager
    def failing():
        evaluations = []

        def hook(module, args):
            evaluations.append(args)
            if len(evaluations) == 2:
                raise Broken

        handle = denoiser_of(pipe).register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    return failing(), {}


@every_family
@pytest.mark.parametrize("failure", [None, fail_in_the_callback, fail_in_the_denoiser])
def test_the_pipeline_is_as_before_afterwards(family, failure):
    pipe = tiny.taught(tiny.FAMILIES[family]())
    plain = run(pipe)
    before = attributes(pipe)
    breaking, changes = failure(pipe) if failure else (nullcontext(), {})
    expected = pytest.raises(Broken) if failure else nullcontext()
    with breaking, expected, guided_by(pipe, GuidanceSchedule.none) as trace:
        run(pipe, **changes)
    assert attributes(pipe) == before
    assert torch.equal(run(pipe), plain)
    assert 0 < len(trace.steps) < 4 if failure else not trace.steps.guided.any()


def test_a_call_after_a_failed_one_obeys_the_schedule():
    pipe = tiny.stable_diffusion()
    with guided_by(pipe, GuidanceSchedule.from_mask(ON_OFF_ON)):
        expected = run(pipe)
    breaking, _ = fail_in_the_denoiser(pipe)
    with guided_by(pipe, GuidanceSchedule.from_mask(ON_OFF_ON)) as trace:
        with breaking, pytest.raises(Broken):
            run(pipe)
        assert torch.equal(run(pipe), expected)
    assert trace.steps.groupby("call").guided.agg(list).tolist() == [[True], ON_OFF_ON]


def test_hooks_that_are_placed_anew_between_calls_do_not_displace_the_seam():
    pipe = tiny.stable_diffusion()
    add_hook_to_module(pipe.unet, ModelHook())
    with guided_by(pipe, GuidanceSchedule.from_mask(ON_OFF_ON)) as trace:
        expected = run(pipe)
        for _ in range(2):  # what `enable_model_cpu_offload` does after every call
            remove_hook_from_module(pipe.unet)
            add_hook_to_module(pipe.unet, ModelHook())
            assert torch.equal(run(pipe), expected)
    assert trace.steps.guided.tolist() == ON_OFF_ON * 3
    assert hasattr(pipe.unet, "_hf_hook")  # not ours to remove
    assert pipe.unet._compiled_call_impl is None


def test_a_compiled_denoiser_stays_compiled():
    pipe = tiny.stable_diffusion()
    plain, calls = run(pipe), []

    def compiled(*args, **kwargs):
        calls.append(args)
        return pipe.unet._call_impl(*args, **kwargs)

    pipe.unet._compiled_call_impl = compiled
    with guided_by(pipe, GuidanceSchedule.full):
        assert torch.equal(run(pipe), plain)
    assert len(calls) == 4
    assert pipe.unet._compiled_call_impl is compiled


def test_what_others_place_on_the_pipeline_meanwhile_stays():
    pipe = tiny.stable_diffusion()
    theirs = {pipe.unet: "_compiled_call_impl", pipe.scheduler: "step", pipe: "prepare_latents"}
    with guided_by(pipe, GuidanceSchedule.full):
        for owner, name in theirs.items():
            setattr(owner, name, len)
    assert all(getattr(owner, name) is len for owner, name in theirs.items())


def test_skip_layer_guidance_is_left_out_of_unguided_steps():
    pipe = tiny.stable_diffusion_3()
    skipping = {
        "skip_guidance_layers": [1],
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
    }
    plain = run(pipe, **skipping)
    with guided_by(pipe, GuidanceSchedule.full):
        assert torch.equal(run(pipe, **skipping), plain)
    with guided_by(pipe, GuidanceSchedule.none):
        without = run(pipe)
        assert not torch.equal(without, plain)
    with guided_by(pipe, GuidanceSchedule.none) as trace:
        assert torch.equal(run(pipe, **skipping), without)
    assert trace.steps.rows.tolist() == [2] * 4
    assert not trace.steps.guided.any()


def kept_predictions(kept):
    """A listener that copies what a step holds when it ends."""

    class Keeper(Listener):
        def step_ends(self, step):
            kept.append((step.cond.clone(), None if step.uncond is None else step.uncond.clone()))

    return Keeper()


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_a_step_holds_what_the_denoiser_said(family):
    pipe, said, kept = tiny.FAMILIES[family](), [], []
    third_call = {
        "skip_guidance_layers": [1],
        "skip_layer_guidance_start": 0.4,
        "skip_layer_guidance_stop": 0.6,
    }
    with guided_by(pipe, GuidanceSchedule.last(4, 1), listeners=[kept_predictions(kept)]):
        handle = denoiser_of(pipe).register_forward_hook(
            lambda module, args, output: said.append(output[0].clone())
        )
        run(pipe, **third_call if family == "sd3" else {})
        handle.remove()
    said = [
        part for output in said for part in output.split(2)
    ]  # 2 images: (uncond, cond) or, of two calls, reversed
    if len(said) == 8:  # skip-layer guidance, in step 2 alone, is neither of the two
        del said[6]
    assert len(said) == 7
    for step, (cond, uncond) in enumerate(kept[:3]):
        first, second = said[2 * step : 2 * step + 2]
        assert torch.equal(cond, first if family == "flux" else second)
        assert torch.equal(uncond, second if family == "flux" else first)
    assert torch.equal(kept[3][0], said[6])
    assert kept[3][1] is None


def test_listeners_hear_every_event_in_order():
    heard = []

    class Recorder(Listener):
        def loop_begins(self, call, iterations, images):
            heard.append(("loop", call, iterations, images))

        def denoiser_begins(self, step, rows):
            heard.append(("evaluate", step.index, rows))

        def denoiser_ends(self, step):
            heard.append(("evaluated", step.index, step.rows))

        def scheduler_begins(self, step):
            heard.append(("schedule", step.index, tuple(step.sample.shape)))

        def scheduler_ends(self, step):
            heard.append(("scheduled", step.index))

        def step_ends(self, step):
            heard.append(("step", step.guided, round(float(step.sigma), 3)))

    with guided_by(pipe := tiny.flux(), GuidanceSchedule.last(2, 1), listeners=[Recorder()]):
        run(pipe, num_inference_steps=2)
    first = [("evaluate", 0, 2), ("evaluated", 0, 2), ("evaluate", 0, 2), ("evaluated", 0, 4)]
    first += [("schedule", 0, (2, 64, 16)), ("scheduled", 0), ("step", True, float("inf"))]
    second = [("evaluate", 1, 2), ("evaluated", 1, 2)]
    second += [("schedule", 1, (2, 64, 16)), ("scheduled", 1), ("step", False, 1.0)]
    assert heard == [("loop", 0, 2, 2), *first, *second]


@pytest.mark.parametrize("length", [3, 5])
def test_a_mask_of_another_length_is_refused_before_the_first_evaluation(length):
    pipe = tiny.stable_diffusion()
    before = attributes(pipe)
    message = f"the schedule has {length} steps but the loop runs 4"
    refused = pytest.raises(ValueError, match=message)
    with (
        tiny.counted_rows(pipe) as counted,
        refused,
        guided_by(pipe, GuidanceSchedule.full(length)),
    ):
        run(pipe)
    assert counted == []
    assert set(vars(pipe.unet)) == before[2]


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("schedule", [GuidanceSchedule.full, GuidanceSchedule.none])
def test_a_pipeline_without_guidance_is_refused(family, schedule):
    pipe = tiny.FAMILIES[family]()
    scale = "true_cfg_scale" if family in tiny.TWO_CALLS else "guidance_scale"
    refused = pytest.raises(
        ValueError, match=r"Pipeline runs without guidance here.*guidance_scale of 1 or less"
    )
    with refused, guided_by(pipe, schedule):
        run(pipe, **{scale: 1.0})


def test_a_pipeline_without_guidance_can_be_observed():
    pipe = tiny.stable_diffusion()
    with guided_by(pipe, None) as trace:
        run(pipe, guidance_scale=1.0)
    assert trace.steps.rows.tolist() == [2] * 4
    assert not trace.steps.guided.any()


def test_a_second_schedule_on_the_same_pipeline_is_refused():
    pipe = tiny.stable_diffusion()
    with guided_by(pipe, GuidanceSchedule.from_mask(ON_OFF_ON)) as trace:
        with (
            pytest.raises(ValueError, match="already runs under a guidance schedule"),
            guided_by(pipe, None),
        ):
            pass
        run(pipe)
    assert trace.steps.guided.tolist() == ON_OFF_ON


@pytest.mark.parametrize("part", ["scheduler", "unet"])
@pytest.mark.parametrize("calls", [0, 1])
def test_a_part_replaced_while_a_schedule_holds_is_refused(part, calls):
    pipe, other = tiny.stable_diffusion(), tiny.stable_diffusion()
    with tiny.counted_rows(other) as counted, guided_by(pipe, GuidanceSchedule.none):
        for _ in range(calls):
            run(pipe)
        setattr(pipe, part, getattr(other, part))
        with pytest.raises(ValueError, match="was replaced"):
            run(pipe)
    assert counted == []
    assert torch.equal(run(pipe), run(other))


def test_the_denoiser_of_an_observed_pipeline_refuses_other_callers():
    pipe, other = tiny.stable_diffusion(), tiny.stable_diffusion()
    other.unet = pipe.unet
    with (
        guided_by(pipe, GuidanceSchedule.none),
        pytest.raises(RuntimeError, match="outside the loop"),
    ):
        run(other)


@pytest.mark.parametrize(
    ("make", "iterations"),
    [
        (tiny.stable_diffusion, 4),
        (lambda: tiny.stable_diffusion(PNDMScheduler, skip_prk_steps=True), 5),
        (lambda: tiny.stable_diffusion(HeunDiscreteScheduler), 7),
        (tiny.image_to_image, 3),
    ],
    ids=["DDIM", "PNDM", "Heun", "img2img"],
)
def test_a_rule_is_asked_for_the_iterations_that_really_run(make, iterations):
    pipe, asked = make(), []

    def rule(steps):
        asked.append(steps)
        return GuidanceSchedule.last(steps, 2)

    with guided_by(pipe, rule) as trace, tiny.counted_rows(pipe) as counted:
        run(pipe)
    assert asked == [iterations]
    assert trace.steps.guided.tolist() == [True] * (iterations - 2) + [False] * 2
    assert counted == [4] * (iterations - 2) + [2] * 2


@pytest.mark.parametrize("scheduler", [DDIMScheduler, PNDMScheduler, HeunDiscreteScheduler])
def test_schedulers_with_history_see_what_the_oracle_shows_them(scheduler):
    pipe = tiny.stable_diffusion(scheduler)
    with guided_by(pipe, None) as trace:
        run(pipe)
    mask = [step % 3 != 1 for step in trace.steps.step]
    with tiny.overwritten(pipe, mask):
        expected = run(pipe)
    with guided_by(pipe, GuidanceSchedule.from_mask(mask)):
        tiny.assert_same_latents(run(pipe), expected)


def test_a_pipeline_without_a_denoiser_is_refused():
    with (
        pytest.raises(ValueError, match="object has no network that predicts noise"),
        guided_by(object(), None),
    ):
        pass


def test_a_schedule_for_another_scheduler_is_refused_before_the_first_evaluation():
    pipe = tiny.stable_diffusion()
    schedule = GuidanceSchedule((True, True, False, False), "EulerDiscreteScheduler")
    with (
        tiny.counted_rows(pipe) as counted,
        pytest.raises(
            ValueError,
            match="is made for EulerDiscreteScheduler but the pipeline has DDIMScheduler",
        ),
        guided_by(pipe, schedule),
    ):
        run(pipe)
    assert counted == []
