import copy

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.utils import BaseOutput

from sdbench.variants.fitted_scale import fitted
from sdbench.variants.grammar import parse
from sdbench.variants.guidance import guided_by
from sdbench.variants.rows import Layout, as_rows
from sdbench.variants.schedule import GuidanceSchedule


def fitted_scale(guided, cond, uncond):
    """The scale alone; NaN where nothing is told."""
    fit = fitted(guided, uncond, cond)
    return torch.tensor(float("nan")) if fit is None else fit.scale


class Denoised(BaseOutput):
    """An output object, as a denoiser returns it unless told otherwise."""


class Nested(torch.nn.Module):
    """A denoiser whose batched arguments sit in lists, tuples and dicts; two have no batch."""

    def forward(self, sample, *, nested, image_rotary_emb, txt_ids):
        assert len(image_rotary_emb[0]) == len(txt_ids) == 4
        total = sample + nested["list"][0] + nested["list"][1][0] + nested["scalar"]
        return Denoised(sample=total, parts=(total, [2 * total]))


class Recording(DDIMScheduler):
    """Keeps what its steps are given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def step(self, model_output, timestep, sample):
        self.given.append(model_output)
        return super().step(model_output, timestep, sample)


class NestedPipeline:
    """Two steps of concatenated guidance on two images, by default the unconditional half first."""

    evaluations = 1  # of a step

    def __init__(self, *, conditional_first=False):
        self.transformer, self.scheduler, self.outputs = Nested(), Recording(), []
        self.conditional_first = conditional_first

    def prepare_latents(self):
        return torch.ones(2, 1), torch.ones(7, 1)

    def latents(self):
        return self.prepare_latents()

    def __call__(self):
        self.scheduler.set_timesteps(2)
        latents, _ = self.latents()
        rows = torch.arange(4.0)[:, None]
        nested = {"list": [rows, (10 * rows,)], "scalar": torch.tensor(100.0)}
        ids = {"image_rotary_emb": (torch.zeros(4, 9),), "txt_ids": torch.zeros(4, 3)}
        for timestep in self.scheduler.timesteps:
            for _ in range(self.evaluations):
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


class WidePipeline(NestedPipeline):
    """Its latents have values enough to tell how a guided prediction is made."""

    def prepare_latents(self):
        return torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), torch.ones(7, 1)

    def conditional(self):
        """The conditional prediction."""
        latents, _ = WidePipeline.prepare_latents(self)
        first = 0.0 if self.conditional_first else 2.0
        return latents + 11 * torch.tensor([[first], [first + 1]]) + 100


def run_under(pipe, schedule):
    """The trace of a call, and what the scheduler got in it."""
    with guided_by(pipe, schedule) as trace:
        pipe()
    given, pipe.scheduler.given = pipe.scheduler.given, []
    return trace.steps, given


@pytest.mark.parametrize("conditional_first", [False, True])
def test_the_order_of_the_halves_is_learnt_from_a_guided_step(conditional_first):
    pipe = WidePipeline(conditional_first=conditional_first)
    steps, given = run_under(pipe, GuidanceSchedule.last(2, 1))
    assert steps.rows.tolist() == [4, 2]
    assert torch.equal(given[1], pipe.conditional())
    assert torch.equal(pipe.outputs[1].sample, torch.cat([pipe.conditional()] * 2))


@pytest.mark.parametrize("conditional_first", [False, True])
def test_a_schedule_without_a_guided_step_spends_an_evaluation_to_learn_it(conditional_first):
    pipe = WidePipeline(conditional_first=conditional_first)
    steps, given = run_under(pipe, GuidanceSchedule.none)
    assert steps.rows.tolist() == [4, 2]
    assert not steps.guided.any()
    torch.testing.assert_close(given[0], pipe.conditional())
    assert torch.equal(given[1], pipe.conditional())

    again, given = run_under(pipe, GuidanceSchedule.none)  # what is known is known
    assert again.rows.tolist() == [2, 2]
    assert all(torch.equal(rows, pipe.conditional()) for rows in given)


def test_the_order_is_learnt_from_a_call_that_is_only_observed():
    pipe = WidePipeline(conditional_first=True)
    assert run_under(pipe, None)[0].rows.tolist() == [4, 4]
    steps, given = run_under(pipe, GuidanceSchedule.none)
    assert steps.rows.tolist() == [2, 2]
    assert all(torch.equal(rows, pipe.conditional()) for rows in given)


class OneTensorPipeline(WidePipeline):
    """Its denoiser returns nothing but the prediction."""

    def __init__(self, **order):
        super().__init__(**order)
        self.transformer.register_forward_hook(lambda *call: Denoised(sample=call[-1].sample))


@pytest.mark.parametrize("conditional_first", [False, True])
def test_a_method_that_cannot_wait_is_refused_where_the_order_is_not_the_usual_one(
    conditional_first,
):
    pipe = OneTensorPipeline(conditional_first=conditional_first)
    decides = parse("cached:2").policy
    if conditional_first:
        refused = pytest.raises(ValueError, match="is not known yet: call it once under guided_by")
        with refused, guided_by(pipe, decides(7.0)):
            pipe()
        pipe = OneTensorPipeline(conditional_first=True)
        run_under(pipe, None)
    with guided_by(pipe, decides(7.0)) as trace:
        pipe()
    assert trace.steps.rows.tolist() == [4, 2]


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
    assert fitted_scale(guided.flatten(1), c, u).isnan()
    assert fitted_scale(shuffled.reshape(c.shape), c, u).isnan()


def pair(*shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "laid_out",
    [
        pytest.param(lambda video: video[:, :, 1:], id="without the first frame"),
        pytest.param(lambda video: video[..., :4], id="the left of a width"),
        pytest.param(lambda video: video.transpose(1, 2).flatten(0, 1), id="frames as rows"),
        pytest.param(lambda video: torch.cat([video, video]), id="latents carried twice"),
        pytest.param(lambda video: -0.6 * video, id="another sign and size"),
    ],
)
@pytest.mark.parametrize("scale", [7.5, -6.5])
def test_the_scale_is_found_however_the_pipeline_lays_it_out(laid_out, scale):
    u, c = pair(2, 4, 3, 6, 8)
    assert float(fitted_scale(laid_out(u + scale * (c - u)), c, u)) == pytest.approx(
        scale, rel=1e-3
    )


def test_the_scale_is_found_where_the_latents_are_part_of_the_guided_prediction():
    u, c = pair(2, 4, 6, 6)
    sample = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    guided = 0.4 * sample + 0.7 * (u + 5 * (c - u))
    fit = fitted(guided, u, c, sample)
    assert float(fit.scale) == pytest.approx(5, rel=1e-3)
    torch.testing.assert_close(fit.unguided(guided, swapped=False), 0.4 * sample + 0.7 * c)
    torch.testing.assert_close(fit.unguided(guided, swapped=True), 0.4 * sample + 0.7 * u)


def test_the_scale_is_found_where_half_of_the_channels_are_a_variance_that_is_not_guided():
    u, c = pair(2, 8, 6, 6)
    guided = torch.cat([(u + 5 * (c - u))[:, :4], c[:, 4:]], dim=1)
    fit = fitted(guided, u, c)
    assert float(fit.scale) == pytest.approx(5, rel=1e-4)
    torch.testing.assert_close(fit.unguided(guided, swapped=False), c)


def test_the_scale_is_found_of_lists_of_samples():
    u, c = pair(2, 4, 1, 6, 6)
    guided = (u + 5 * (c - u)).squeeze(2)
    assert float(fitted(guided, list(u), list(c)).scale) == pytest.approx(5, rel=1e-4)


def test_fewer_rows_tell_no_scale():
    u, c = pair(2, 16, 8)
    assert fitted_scale(u[:1], c, u).isnan()


def test_frames_go_with_their_rows():
    frames = torch.arange(12.0)[:, None]  # 4 rows of 3 frames
    tree = {"text": frames, "video": torch.arange(4.0)[:, None], "scales": torch.arange(12.0)}
    first, second = Layout(4, frames=3).halves(tree)
    assert second["text"].flatten().tolist() == list(range(6, 12))
    assert first["video"].flatten().tolist() == [0, 1]
    assert len(first["scales"]) == 12  # not of rows: what a frame gets has a shape
    some = Layout(4, frames=3).select(tree, [3, 0])
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


class UnpreparedPipeline(WidePipeline):
    """Nobody sees how it comes by its latents."""

    def latents(self):
        return WidePipeline.prepare_latents(self)


def test_a_pipeline_that_prepares_no_latents_shows_them_in_its_first_call():
    steps, _ = run_under(UnpreparedPipeline(), GuidanceSchedule.last(2, 1))
    assert steps.rows.tolist() == [4, 2]


class TwoCallsPipeline(UnpreparedPipeline):
    """Evaluates the conditional prediction of its two images first, in a call of its own."""

    def __call__(self):
        self.scheduler.set_timesteps(2)
        latents = self.latents()[0][:1].repeat(2, 1)
        ids = {"image_rotary_emb": (torch.zeros(4, 9),), "txt_ids": torch.zeros(4, 3)}
        for timestep in self.scheduler.timesteps:
            cond, uncond = (
                self.transformer(
                    latents,
                    nested={"list": [rows, (10 * rows,)], "scalar": torch.tensor(100.0)},
                    **ids,
                ).sample
                for rows in (torch.tensor([[2.0], [3.0]]), torch.tensor([[0.0], [1.0]]))
            )
            self.scheduler.step(uncond + 7 * (cond - uncond), timestep, latents)

    def conditional(self):
        latents = self.latents()[0][:1].repeat(2, 1)
        return latents + 11 * torch.tensor([[2.0], [3.0]]) + 100


@pytest.mark.parametrize("schedule", [GuidanceSchedule.last(2, 1), GuidanceSchedule.none(2)])
def test_two_images_with_the_same_noise_are_not_taken_for_two_halves(schedule):
    pipe = TwoCallsPipeline()  # its two latents are the same, and nothing says how many there are
    steps, given = run_under(pipe, schedule)
    assert steps.rows.tolist() == [4, 2]
    assert torch.equal(given[1], pipe.conditional())
    assert torch.equal(run_under(pipe, schedule)[1][1], pipe.conditional())


def test_three_rows_per_image_are_refused():
    pipe = NestedPipeline()
    refused = pytest.raises(
        ValueError, match="NestedPipeline evaluates 6 rows for 2 latents, more than two"
    )
    with refused, guided_by(pipe, None):
        pipe.scheduler.set_timesteps(2)
        pipe.prepare_latents()
        pipe.transformer(torch.ones(6, 1))
