"""Denoisers that get what belongs to a frame row after row; schedulers that get frames as rows."""

import pytest
import torch

from sdbench.instruments.clock import CpuClock
from sdbench.instruments.steps import StepProbe
from sdbench.models.pipeline import denoiser_of
from sdbench.variants.branches import Branches, Trunk
from sdbench.variants.guidance import guided_by
from sdbench.variants.methods.adaptive import Adaptive
from sdbench.variants.policy import Policy
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Listener
from tests import tiny
from tests.families import videos
from tests.tiny import run

# What the deprecated pipelines of videos say of themselves, and of what they use.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
every_family = pytest.mark.parametrize("family", videos.FAMILIES)
MASK = [True, False, False, True]
BATCHES = ["animatediff", "animatediff-sdxl", "animatediff-ip-adapter", "text-to-video"]
every_batch = pytest.mark.parametrize("family", BATCHES)


def rows_of_the_denoiser(pipe):
    """The rows of every call that reaches the denoiser's own code."""
    rows = []
    denoiser_of(pipe).register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


@every_family
def test_every_family_obeys_a_mask(family):
    pipe = videos.FAMILIES[family]()
    plain = run(pipe)
    with tiny.overwritten(pipe, MASK):
        expected = run(pipe)
    with guided_by(pipe, GuidanceSchedule.full):
        assert torch.equal(run(pipe), plain)
    rows = rows_of_the_denoiser(pipe)
    with guided_by(pipe, GuidanceSchedule.from_mask(MASK)) as trace:
        tiny.assert_same_latents(run(pipe), expected)
    videos_made = len(plain)
    assert rows == trace.steps.rows.tolist() == [videos_made * (1 + guided) for guided in MASK]
    assert not torch.allclose(plain, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["animatediff-controlnet", "animatediff-sparsectrl"])
def test_a_controlnet_evaluates_no_more_frames_than_the_denoiser(family):
    pipe, rows = videos.FAMILIES[family](), []
    pipe.controlnet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with guided_by(pipe, GuidanceSchedule.from_mask(MASK)):
        run(pipe)
    assert rows == [videos.FRAMES * (1 + guided) for guided in MASK]


class OnlySecond(Policy):
    """Guides the second video alone."""

    def evaluated(self, step):
        return [1]

    def unconditional(self, step, cond, uncond):
        return torch.cat([cond[:1], uncond])


@every_batch
def test_a_chosen_row_brings_all_of_its_frames(family):
    pipe = videos.FAMILIES[family]()
    plain = run(pipe)
    with guided_by(pipe, GuidanceSchedule.none):
        unguided = run(pipe)
    with guided_by(pipe, OnlySecond()) as trace:
        found = run(pipe)
    assert trace.steps.rows.tolist() == [3] * 4
    tiny.assert_same_latents(found, torch.cat([unguided[:1], plain[1:]]))


@every_batch
def test_adaptive_guidance_knows_the_clean_videos(family):
    pipe = videos.FAMILIES[family]()
    with guided_by(pipe, Adaptive(-1.0)) as trace:
        found = run(pipe)
    assert trace.steps.rows.tolist() == [4, 2, 2, 2]  # any cosine is above the threshold
    with guided_by(pipe, GuidanceSchedule.from_mask([True, False, False, False])):
        tiny.assert_same_latents(found, run(pipe))


@pytest.mark.parametrize("family", ["animatediff", "text-to-video"])
def test_branches_of_videos_are_those_of_calls_by_themselves(family):
    pipe = videos.FAMILIES[family]()
    masks = [(True,) * 4, (True, True, False, False), (True, False, True, False)]

    def noise(count):
        return {"generator": [torch.Generator("cpu").manual_seed(1) for _ in range(count)]}

    expected = []
    for mask in masks:
        with guided_by(pipe, GuidanceSchedule.from_mask(mask)):
            expected.append(run(pipe, prompt=tiny.PROMPTS[0], **noise(1)))
    with guided_by(pipe, Branches(masks, 1, Trunk(), max_rows=4)):
        found = run(pipe, prompt=[tiny.PROMPTS[0]] * len(masks), **noise(len(masks)))
    tiny.assert_same_latents(found, torch.cat(expected))


@pytest.mark.parametrize("seed", range(8))
def test_text_to_video_is_not_refused_by_chance(seed):
    pipe = videos.FAMILIES["text-to-video"]()
    noise = torch.Generator("cpu").manual_seed(seed)
    with guided_by(pipe, GuidanceSchedule.full) as trace:
        run(pipe, generator=noise, num_inference_steps=1)
    assert trace.steps.rows.tolist() == [4]


@every_family
def test_listeners_get_latents_and_predictions_in_one_layout(family):
    shapes = set()

    class Shapes(Listener):
        """Those of every step."""

        def step_ends(self, step):
            shapes.update(map(tuple, (step.sample.shape, step.result.shape, step.cond.shape)))

    pipe = videos.FAMILIES[family]()
    with guided_by(pipe, None, listeners=[Shapes()]):
        latents = run(pipe)
    assert shapes == {tuple(latents.shape)}


def test_the_signal_of_text_to_video_is_one_of_whole_videos():
    pipe = videos.FAMILIES["text-to-video"]()
    probe, kept = StepProbe(pipe.scheduler, CpuClock()), []

    class Keeper(Listener):
        """The norm of each video's difference, by hand."""

        def step_ends(self, step):
            difference = (step.cond - step.uncond).flatten(1)
            kept.append(float(difference.square().sum(1).sqrt().mean()))

    with guided_by(pipe, None, listeners=[probe, Keeper()]), probe.call() as record:
        run(pipe)
    assert [row["guidance_norm"] for row in record.steps] == pytest.approx(kept)
    assert all(-1 <= row["guidance_cosine"] <= 1 for row in record.steps)
