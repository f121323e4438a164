import copy

import pytest
import torch
from diffusers.utils import BaseOutput

from sdbench.variants.fitted_scale import fitted_scale
from sdbench.variants.guidance import guided_by
from sdbench.variants.rows import as_rows, halves, select
from sdbench.variants.schedule import GuidanceSchedule
from tests import tiny


class Denoised(BaseOutput):
    """An output object, as a denoiser returns it unless told otherwise."""


class Nested(torch.nn.Module):
    """A denoiser whose batched arguments sit in lists, tuples and dicts; two have no batch."""

    def forward(self, sample, *, nested, image_rotary_emb, txt_ids):
        assert len(image_rotary_emb[0]) == len(txt_ids) == 4
        total = sample + nested["list"][0] + nested["list"][1][0] + nested["scalar"]
        return Denoised(sample=total, parts=(total, [2 * total]))


class NestedPipeline:
    """Two steps of concatenated guidance on two images, by default the unconditional half first."""

    def __init__(self, *, conditional_first=False):
        self.transformer, self.scheduler, self.outputs = Nested(), tiny.scheduler(), []
        self.conditional_first = conditional_first

    def prepare_latents(self):
        return torch.ones(2, 1), torch.ones(7, 1)

    def __call__(self):
        self.scheduler.set_timesteps(2)
        latents, _ = self.prepare_latents()
        rows = torch.arange(4.0)[:, None]
        nested = {"list": [rows, (10 * rows,)], "scalar": torch.tensor(100.0)}
        ids = {"image_rotary_emb": (torch.zeros(4, 9),), "txt_ids": torch.zeros(4, 3)}
        for timestep in self.scheduler.timesteps:
            out = self.transformer(torch.cat([latents] * 2), nested=nested, **ids)
            self.outputs.append(out)
            uncond, cond = out.sample.chunk(2)[:: -1 if self.conditional_first else 1]
            self.scheduler.step(uncond + 7 * (cond - uncond), timestep, latents)


def test_nested_arguments_are_halved_and_nested_outputs_doubled():
    pipe = NestedPipeline()
    with guided_by(pipe, GuidanceSchedule.last(2, 1)) as trace:
        pipe()
    guided, unguided = pipe.outputs
    assert trace.steps.rows.tolist() == [4, 2]
    assert guided.sample.flatten().tolist() == [101, 112, 123, 134]
    assert unguided.sample.flatten().tolist() == [123, 134] * 2
    assert type(unguided) is Denoised
    assert torch.equal(unguided["parts"][1][0], 2 * unguided.sample)


@pytest.mark.parametrize(
    "schedule", [GuidanceSchedule.full, lambda steps: GuidanceSchedule.last(steps, 1)]
)
def test_a_pipeline_that_puts_the_conditional_half_first_is_refused(schedule):
    refused = pytest.raises(ValueError, match=r"does not guide as u \+ w \(c - u\).*w = -6.00")
    pipe = NestedPipeline(conditional_first=True)
    with refused, guided_by(pipe, schedule):
        pipe()


def test_one_known_to_put_the_conditional_half_first_is_refused_before_its_first_evaluation():
    pipe = type("LuminaPipeline", (NestedPipeline,), {})(conditional_first=True)
    refused = pytest.raises(ValueError, match="LuminaPipeline puts its conditional rows first")
    with refused, guided_by(pipe, GuidanceSchedule.none):
        pipe()
    assert pipe.outputs == []


def test_a_pipeline_with_the_conditional_half_first_can_be_observed():
    pipe = NestedPipeline(conditional_first=True)
    with guided_by(pipe, None) as trace:
        pipe()
    assert trace.steps.rows.tolist() == [4, 4]


@pytest.mark.parametrize("scale", [1.5, 7.5, -6.5])
@pytest.mark.parametrize("factor", [1.0, 0.6])
def test_the_scale_is_found_whatever_the_prediction_is_rescaled_by(scale, factor):
    u, c = torch.randn(
        2, 3, 6, 4, 4, generator=torch.Generator().manual_seed(0)
    )  # six channels, two of them variance
    guided = factor * (u + scale * (c - u))[:, :4]
    assert float(fitted_scale(guided, c, u)) == pytest.approx(scale, rel=1e-4)


def test_equal_predictions_tell_no_scale():
    u = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert fitted_scale(u, u, u).isnan()


def guided_video(seed, scale, factor=1.0):
    """Both predictions of two videos, and the guided one with its frames as rows."""
    u, c = torch.randn(2, 2, 4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    guided = factor * (u + scale * (c - u))
    return guided.transpose(1, 2).flatten(0, 1), c, u


@pytest.mark.parametrize("scale", [7.5, -6.5])
@pytest.mark.parametrize("factor", [1.0, 0.6])
def test_the_scale_is_found_where_frames_have_become_rows(scale, factor):
    guided, c, u = guided_video(0, scale, factor)
    assert float(fitted_scale(as_rows(guided, c), c, u)) == pytest.approx(scale, rel=1e-4)


@pytest.mark.parametrize("seed", range(50))
def test_another_layout_tells_no_scale(seed):
    guided, c, u = guided_video(seed, 7.5)
    shuffled = guided.flatten()[torch.randperm(guided.numel())]
    assert fitted_scale(guided, c, u).isnan()
    assert fitted_scale(guided.flatten(1), c, u).isnan()
    assert fitted_scale(shuffled.reshape(c.shape), c, u).isnan()


def test_fewer_frames_or_tokens_tell_no_scale():
    u, c = torch.randn(2, 2, 16, 8, generator=torch.Generator().manual_seed(0))
    assert fitted_scale(u[..., :4], c, u).isnan()
    assert fitted_scale(u[:1], c, u).isnan()


def test_frames_go_with_their_rows():
    frames = torch.arange(12.0)[:, None]  # 4 rows of 3 frames
    tree = {"text": frames, "video": torch.arange(4.0)[:, None], "scales": torch.arange(12.0)}
    first, second = halves(tree, 4, frames=3)
    assert second["text"].flatten().tolist() == list(range(6, 12))
    assert first["video"].flatten().tolist() == [0, 1]
    assert len(first["scales"]) == 12  # not of rows: what a frame gets has a shape
    some = select(tree, 4, [3, 0], frames=3)
    assert some["text"].flatten().tolist() == [9, 10, 11, 0, 1, 2]
    assert some["video"].flatten().tolist() == [3, 0]


class CopyingPipeline(NestedPipeline):
    """Steps a copy of its scheduler, too, as pipelines do that make sound with the picture."""

    def __call__(self):
        other = copy.deepcopy(self.scheduler)
        other.set_timesteps(3)
        other.step(torch.ones(2, 1), other.timesteps[0], torch.ones(2, 1))
        super().__call__()


def test_a_copied_scheduler_is_not_observed():
    pipe = CopyingPipeline()
    with guided_by(pipe, GuidanceSchedule.last(2, 1)) as trace:
        pipe()
    assert trace.steps.rows.tolist() == [4, 2]
    assert "__deepcopy__" not in vars(pipe.scheduler)


def test_a_pipeline_that_makes_no_latents_is_refused():
    pipe = NestedPipeline()
    pipe.prepare_latents = None
    bare = type("Bare", (), {"transformer": pipe.transformer, "scheduler": pipe.scheduler})()
    with pytest.raises(ValueError, match="Bare has no prepare_latents"), guided_by(bare, None):
        pass


def test_three_rows_per_image_are_refused():
    pipe = NestedPipeline()
    refused = pytest.raises(
        ValueError, match="NestedPipeline evaluates 6 rows for 2 latents: guidance of its own kind"
    )
    with refused, guided_by(pipe, None):
        pipe.scheduler.set_timesteps(2)
        pipe.prepare_latents()
        pipe.transformer(torch.ones(6, 1))
