"""Every guided family of diffusers, every scheduler and every execution, under one set of checks.

What differs between families stands in the tables of `tests/families`; the seam has no code for any
of them.
"""

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPAGPipeline

from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from tests import families, tiny
from tests.families import schedulers, support
from tests.tiny import run

MASKS = {"on-off-on": [True, False, False, True], "none": [False] * 4}

every_family = pytest.mark.parametrize("family", families.FAMILIES)
OFTEN = {"sd", "sd3", "flux"}
"""A UNet, a transformer and guidance by two calls: for what is tried of every kind only."""


def often(family, mask):
    """A mask that goes off and on is tried on every family in every run."""
    return [] if family in OFTEN or mask == "on-off-on" else [pytest.mark.slow]


def checked(pipe, mask, *, two_calls=False, tolerance=1e-5):
    """Run a mask; hold it against the oracle, and its trace against its inner rows."""
    plain = run(pipe)
    with tiny.overwritten(pipe, mask, two_calls=two_calls):
        expected = run(pipe)
    with guided_by(pipe, GuidanceSchedule.full):
        assert torch.equal(run(pipe), plain)  # stochastic schedulers draw the same noise
    with (
        guided_by(pipe, GuidanceSchedule.from_mask(mask)) as trace,
        tiny.counted_rows(pipe) as counted,
    ):
        tiny.assert_same_latents(run(pipe), expected, tolerance=tolerance)
    assert torch.equal(run(pipe), plain)  # the pipeline is as before
    assert not torch.allclose(
        plain, expected, rtol=1e-3, atol=1e-3
    )  # the oracle tells the mask from the plain run
    images = len(plain)
    evaluations = [
        [images] * (1 + guided) if two_calls else [images * (1 + guided)] for guided in mask
    ]
    assert counted == [rows for step in evaluations for rows in step]
    assert trace.steps.guided.tolist() == mask
    assert trace.steps.rows.tolist() == [sum(step) for step in evaluations]
    assert trace.steps.forwards.tolist() == [len(step) for step in evaluations]


def iterations(pipe):
    """How many steps the loop really runs."""
    with guided_by(pipe, None) as trace:
        run(pipe)
    return len(trace.steps)


@pytest.mark.parametrize(
    ("family", "mask"),
    [
        pytest.param(family, mask, marks=often(family, name), id=f"{family}-{name}")
        for family in families.FAMILIES
        for name, mask in MASKS.items()
    ],
)
def test_every_family_obeys_every_mask(family, mask):
    pipe = families.make(family)
    checked(pipe, mask[: iterations(pipe)], two_calls=family in families.TWO_CALLS)


@pytest.mark.parametrize("scheduler", schedulers.DIFFUSION)
def test_every_scheduler_sees_what_the_oracle_shows_it(scheduler):
    pipe = families.make("sd")
    pipe.scheduler = schedulers.DIFFUSION[scheduler](pipe.scheduler.config)
    checked(pipe, [step % 3 != 1 for step in range(iterations(pipe))])


@pytest.mark.parametrize("scheduler", schedulers.FLOW)
def test_every_flow_scheduler_sees_what_the_oracle_shows_it(scheduler):
    pipe = families.make("sd3")
    pipe.scheduler = schedulers.FLOW[scheduler](pipe.scheduler.config)
    checked(pipe, [step % 3 != 1 for step in range(iterations(pipe))])


def slice_attention(pipe):
    pipe.enable_attention_slicing(1)


def fuse_projections(pipe):
    pipe.fuse_qkv_projections()


def offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


@pytest.mark.parametrize("execution", [slice_attention, fuse_projections, offload])
def test_the_mask_holds_however_the_denoiser_is_executed(execution):
    pipe = tiny.stable_diffusion()
    execution(pipe)
    checked(pipe, MASKS["on-off-on"])


def compile_in_place(pipe, **settings):
    pipe.unet.compile(**settings)


def compile_as_a_wrapper(pipe, **settings):
    pipe.unet = torch.compile(pipe.unet, **settings)


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("compile_denoiser", [compile_in_place, compile_as_a_wrapper])
def test_the_hook_stays_outside_of_a_compiled_denoiser(compile_denoiser):
    pipe = tiny.stable_diffusion()
    with guided_by(pipe, GuidanceSchedule.from_mask(MASKS["on-off-on"])):
        expected = run(pipe)
    evaluations = []

    def backend(graph, inputs):
        def evaluate(*args):
            evaluations.append(graph)
            return graph(*args)

        return evaluate

    compile_denoiser(
        pipe, backend=backend, fullgraph=True
    )  # a hook that had to be traced would break the graph
    with guided_by(pipe, GuidanceSchedule.from_mask(MASKS["on-off-on"])) as trace:
        tiny.assert_same_latents(run(pipe), expected)
    assert len(evaluations) == len(trace.steps) == 4
    assert trace.steps.rows.tolist() == [4, 2, 2, 4]


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mask_holds_in_half_precision(family, dtype):
    pipe = families.make(family).to(dtype)
    pipe.call = {
        name: value.to(dtype) if torch.is_tensor(value) else value
        for name, value in pipe.call.items()
    }
    checked(pipe, MASKS["on-off-on"], two_calls=family in families.TWO_CALLS, tolerance=2e-2)


@pytest.mark.slow  # over a hundred pipelines
def test_the_support_table_is_what_runs():
    assert support.WRITTEN.read_text() == support.table()


@pytest.mark.parametrize("family", ["controlnet", "sdxl-controlnet"])
def test_a_controlnet_evaluates_no_more_rows_than_the_denoiser(family):
    pipe, rows = families.make(family), []
    pipe.controlnet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with guided_by(pipe, GuidanceSchedule.from_mask(MASKS["on-off-on"])):
        run(pipe)
    assert rows == [8, 4, 4, 8]


def test_latents_that_bypass_the_pipeline_are_seen_in_its_first_evaluation():
    pipe = families.make("sdxl-img2img")
    with guided_by(pipe, lambda steps: GuidanceSchedule.last(steps, 1)) as trace:
        run(pipe)
        run(pipe, latents=torch.randn(4, 4, 8, 8))
    assert trace.steps.rows.tolist() == [8, 8, 8, 4] * 2


def perturbed_attention():
    torch.manual_seed(0)
    pipe = StableDiffusionPAGPipeline(**tiny.sd_parts(), pag_applied_layers=["mid"])
    return tiny.ready(pipe, prompt=tiny.PROMPTS, guidance_scale=7.5, pag_scale=3.0)


def image_instructions():
    torch.manual_seed(0)
    pipe = StableDiffusionInstructPix2PixPipeline(
        **tiny.sd_parts() | {"unet": tiny.unet(in_channels=8)}
    )
    return tiny.ready(pipe, prompt=tiny.PROMPTS, image=torch.rand(2, 3, 16, 16), guidance_scale=7.5)


@pytest.mark.parametrize("make", [perturbed_attention, image_instructions])
def test_guidance_of_three_predictions_is_refused_and_told_why(make):
    pipe = make()
    plain = run(pipe)
    with (
        pytest.raises(ValueError, match="evaluates 6 rows for 2 latents, more than two"),
        guided_by(pipe, GuidanceSchedule.from_mask(MASKS["on-off-on"])),
    ):
        run(pipe)
    assert torch.equal(run(pipe), plain)
