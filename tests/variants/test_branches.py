import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from sdbench.variants.branches import Branches, Trunk
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from tests import families, tiny
from tests.families import schedulers
from tests.variants.test_families import every_family, iterations


def noise(images, masks):
    """A generator per row; rows of one image begin with the same noise and draw the same later."""
    return [
        torch.Generator("cpu").manual_seed(image) for image in range(images) for _ in range(masks)
    ]


def repeated(pipe):
    """The same pipeline, told every prompt twice, and every image for each row.

    Some pipelines repeat masks in another order than their prompts. Of a single image the first
    row's generator draws the latents, which then differ from the others'.
    """

    def four(name, value):
        if torch.is_tensor(value):
            return (
                value.repeat_interleave(4 // len(value), dim=0)
                if len(value) == 2 or "image" in name
                else value
            )
        return [entry for entry in value for _ in range(2)] if value == tiny.PROMPTS else value

    pipe.call = {
        name: four(name, value)
        for name, value in pipe.call.items()
        if name != "num_images_per_prompt"
    }
    return pipe


def mask_of(text):
    return tuple(letter == "1" for letter in text)


def masks_for(steps):
    """Four masks that part at different steps; the last two share an unguided prefix."""
    full = (True,) * steps
    late = tuple(step < steps // 2 for step in range(steps))
    early = tuple(step != 0 for step in range(steps))
    early_and_late = tuple(0 < step < steps // 2 for step in range(steps))
    return [full, late, early, early_and_late]


def each_alone(pipe, masks):
    """The latents of every mask by itself, as rows of two images."""
    alone = []
    for mask in masks:
        with guided_by(pipe, GuidanceSchedule.from_mask(mask)):
            alone.append(tiny.run(pipe, generator=noise(2, 2))[::2])
    return torch.stack(alone, dim=1).flatten(0, 1)


def distance(latents, expected):
    return float((latents - expected).norm() / expected.norm())


def checked(pipe):
    """Two calls of two masks each, the second on the first's trunk, against every mask alone."""
    masks, trunk = masks_for(iterations(pipe)), Trunk()
    for chosen in (masks[:2], masks[2:]):
        with guided_by(pipe, Branches(chosen, 2, trunk, max_rows=3)):
            latents = tiny.run(pipe, generator=noise(2, 2))
        expected = each_alone(pipe, chosen)
        assert distance(latents, expected) <= min(1e-4, 0.1 * distance(expected[0], expected[1]))


@every_family
def test_branches_end_where_their_masks_do_alone(family):
    checked(repeated(families.make(family)))


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", schedulers.DIFFUSION)
def test_branches_of_every_scheduler_end_where_their_masks_do_alone(scheduler):
    pipe = repeated(families.make("sd"))
    pipe.scheduler = schedulers.DIFFUSION[scheduler](pipe.scheduler.config)
    checked(pipe)


@pytest.mark.parametrize("scheduler", schedulers.FLOW)
def test_branches_of_every_flow_scheduler_end_where_their_masks_do_alone(scheduler):
    pipe = repeated(families.make("sd3"))
    pipe.scheduler = schedulers.FLOW[scheduler](pipe.scheduler.config)
    checked(pipe)


def test_guidance_rescale_acts_on_each_branch_alone():
    pipe = repeated(families.make("sd"))
    pipe.call["guidance_rescale"] = 0.7
    checked(pipe)


@pytest.mark.parametrize(
    ("masks", "rows"),
    [
        (["1111"], [8]),
        (["1111", "1101"], [8, 2]),  # its own step is the trunk's: one guided step of its own
        (["1111", "1100"], [8, 1]),
        (["1111", "0000"], [8, 3]),
        (
            ["1111", "0011", "0111", "0001"],
            [8, 6, 4, 2],
        ),  # the last leaves the second after two steps
    ],
)
@pytest.mark.parametrize("max_rows", [1, 5, 100])
def test_only_distinct_rows_are_evaluated(masks, rows, max_rows):
    pipe = tiny.stable_diffusion()
    pipe.call["num_images_per_prompt"] = len(masks)
    branches = Branches([mask_of(mask) for mask in masks], 2, Trunk(), max_rows=max_rows)
    with tiny.counted_rows(pipe) as counted, guided_by(pipe, branches) as trace:
        tiny.run(pipe, generator=noise(2, len(masks)))
    assert branches.rows == [2 * count for count in rows]
    assert sum(counted) == trace.steps.rows.sum() == 2 * sum(rows)
    assert max(counted) <= max_rows


def test_a_known_trunk_is_not_evaluated_again():
    pipe, trunk = tiny.stable_diffusion(), Trunk()
    pipe.call["num_images_per_prompt"] = 1
    with guided_by(pipe, Branches([mask_of("1111")], 2, trunk, max_rows=8)):
        tiny.run(pipe, generator=noise(2, 1))
    later = Branches([mask_of("1110")], 2, trunk, max_rows=8)
    with tiny.counted_rows(pipe) as counted, guided_by(pipe, later) as trace:
        tiny.run(pipe, generator=noise(2, 1))
    assert counted == []
    assert later.rows == [0]
    assert trace.steps.guided.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([], "at least one mask"),
        (["11", "1"], "of one length"),
        (["11", "11"], "there twice"),
        (["10"], "trunk is not known"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        Branches([mask_of(mask) for mask in masks], 1, Trunk(), max_rows=1)


def test_a_bound_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="max_rows must be at least 1"):
        Branches([(True,)], 1, Trunk(), max_rows=0)


def test_a_call_of_another_size_is_refused_before_its_first_evaluation():
    pipe = tiny.stable_diffusion()
    for masks, message in (
        (["1111"], "not one for each image and mask"),
        (["11", "10"], "the loop runs 4"),
    ):
        with (
            tiny.counted_rows(pipe) as counted,
            pytest.raises(ValueError, match=message),
            guided_by(pipe, Branches([mask_of(mask) for mask in masks], 1, Trunk(), max_rows=8)),
        ):
            tiny.run(pipe)
        assert counted == []


def test_an_unguided_call_is_refused():
    pipe = tiny.stable_diffusion()
    with (
        pytest.raises(ValueError, match="runs without guidance here"),
        guided_by(pipe, Branches([mask_of("1111"), mask_of("1110")], 1, Trunk(), max_rows=8)),
    ):
        tiny.run(pipe, guidance_scale=1.0)


@pytest.mark.parametrize("stochastic", ["flow", "sde"])
def test_noise_that_is_not_the_rows_own_is_refused(stochastic):
    """Stable Diffusion 3 gives its scheduler no generator."""
    pipe = repeated(families.make("sd3"))
    if stochastic == "flow":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    else:
        flow = {
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "algorithm_type": "sde-dpmsolver++",
        }
        pipe.scheduler = DPMSolverMultistepScheduler(**flow)
    with (
        pytest.raises(ValueError, match="draws noise that is not the rows' own"),
        guided_by(pipe, Branches(masks_for(4)[:2], 2, Trunk(), max_rows=8)),
    ):
        tiny.run(pipe, generator=noise(2, 2))
