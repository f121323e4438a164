"""Pipelines with a loop of their own kind: several schedulers, cut timesteps, a text before."""

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, PNDMScheduler

from sdbench.models.pipeline import denoisers_of, schedulers_of
from sdbench.variants.copies import PipelineCopies
from sdbench.variants.grammar import parse
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from tests import families, tiny

STEPS = 4
W = 7.0


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Network(torch.nn.Module):
    """Answers to the latents, to a text and to where it stands; counts its rows."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))
        self.rows = []

    def forward(self, sample, timestep, text):
        self.rows.append(len(sample))
        return self.factor * torch.sin(sample + text)


class Pipeline(DiffusionPipeline):
    """What the pipelines here have in common: texts of two images."""

    texts = randn(2, 2, 1, 1, seed=1)

    def prepare_latents(self):
        return randn(2, 5, 3)

    def denoise(self, network, scheduler, timesteps, *, guides=True):
        latents = self.prepare_latents()
        for t in self.progress_bar(timesteps):
            if guides:
                both = network(torch.cat([latents] * 2), t, self.texts.flatten(0, 1))
                uncond, cond = both.chunk(2)
                out = uncond + W * (cond - uncond)
            else:
                out = network(latents, t, self.texts[1])
            latents = scheduler.step(out, t, latents).prev_sample
        return latents


class LoopsPipeline(Pipeline):
    """As unCLIP: two guided loops and one that only enlarges, each under its own scheduler."""

    def __init__(self, prior, decoder, enlarging, prior_scheduler, decoder_scheduler, last):
        super().__init__()
        self.register_modules(
            prior=prior,
            decoder=decoder,
            enlarging=enlarging,
            prior_scheduler=prior_scheduler,
            decoder_scheduler=decoder_scheduler,
            last=last,
        )
        self.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(self, steps=(STEPS, 6, 2), *, guides=(True, True, False)):
        networks = self.prior, self.decoder, self.enlarging
        schedulers = self.prior_scheduler, self.decoder_scheduler, self.last
        made = []
        for network, scheduler, n, own in zip(networks, schedulers, steps, guides, strict=True):
            scheduler.set_timesteps(n)
            made.append(self.denoise(network, scheduler, scheduler.timesteps, guides=own))
        return made


def loops():
    networks = [Network(factor) for factor in (1.0, 0.5, 0.2)]
    return LoopsPipeline(*networks, *(DDIMScheduler() for _ in networks))


def test_a_schedule_holds_in_every_loop_that_is_guided():
    pipe = loops()
    plain = pipe()
    with guided_by(pipe, lambda steps: GuidanceSchedule.last(steps, steps // 2)) as trace:
        pipe()
    assert trace.calls.iterations.tolist() == [4, 6, 2]
    assert trace.steps.guided.tolist() == [True] * 2 + [False] * 2 + [True] * 3 + [False] * 5
    assert trace.steps.rows.tolist() == [4] * 2 + [2] * 2 + [4] * 3 + [2] * 5
    for before, after in zip(plain, pipe(), strict=True):
        assert torch.equal(before, after)


def test_each_loop_knows_its_order_from_a_call_before():
    pipe = loops()
    with guided_by(pipe, None):
        pipe()
    with guided_by(pipe, GuidanceSchedule.none) as trace:
        pipe()
    assert trace.steps.rows.tolist() == [2] * 12
    assert [network.rows[-2:] for network in denoisers_of(pipe)] == [[2, 2]] * 3


def test_unguided_everywhere_is_refused():
    pipe = loops()
    refused = pytest.raises(ValueError, match="runs without guidance here")
    with refused, guided_by(pipe, GuidanceSchedule.none):
        pipe(guides=(False, False, False))


def test_a_call_is_not_guided_because_an_earlier_one_was():
    pipe = loops()
    refused = pytest.raises(ValueError, match="runs without guidance here")
    with refused, guided_by(pipe, GuidanceSchedule.none) as trace:
        pipe()
        pipe(guides=(False, False, False))
    assert trace.calls.complete.tolist() == [True] * 3 + [False]


def test_copies_have_schedulers_of_their_own():
    pipe = loops()
    with PipelineCopies(pipe) as copies:
        own = schedulers_of(copies.copy().pipe)
    assert len(own) == 3
    assert not {*map(id, own)} & {*map(id, schedulers_of(pipe))}


def test_a_scheduler_that_only_adds_noise_has_no_loop():
    pipe = OneLoopPipeline(Network(), DDIMScheduler(), DDIMScheduler())
    assert schedulers_of(pipe) == [pipe.scheduler]


class OneLoopPipeline(Pipeline):
    """As LTX's with several prompts: it leaves out the last of its timesteps."""

    def __init__(self, transformer, scheduler, low_res_scheduler):
        super().__init__()
        self.register_modules(
            transformer=transformer, scheduler=scheduler, low_res_scheduler=low_res_scheduler
        )
        self.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(self):
        self.scheduler.set_timesteps(STEPS + 1)
        self._num_timesteps = STEPS + 1
        return self.denoise(self.transformer, self.scheduler, self.scheduler.timesteps[:-1])


@pytest.mark.filterwarnings("error")
def test_a_loop_is_as_long_as_the_timesteps_that_its_bar_runs_over():
    pipe = OneLoopPipeline(Network(), DDIMScheduler(), DDIMScheduler())
    with guided_by(pipe, lambda steps: GuidanceSchedule.last(steps, 1)) as trace:
        pipe()
    assert trace.calls.complete.tolist() == [True]
    assert trace.steps.guided.tolist() == [True] * 3 + [False]


def test_a_bar_that_counts_a_repeated_timestep_once_does_not_tell_the_length():
    pipe = families.make("pixart-sigma")
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    with guided_by(pipe, lambda steps: GuidanceSchedule.last(steps, 2)) as trace:
        tiny.run(pipe)
    assert trace.steps.guided.tolist() == [True] * 3 + [False] * 2


class TextFirstPipeline(Pipeline):
    """As Ideogram 4: the conditional call has tokens of text beside those of the latents."""

    def __init__(self, transformer, other_transformer, scheduler, *, at_the_end=False):
        super().__init__()
        self.register_modules(
            transformer=transformer, other_transformer=other_transformer, scheduler=scheduler
        )
        self.at_the_end = at_the_end
        self.given = []

    def with_text(self, latents):
        text = self.texts[1].expand(2, 7, 3)
        return torch.cat([latents, text] if self.at_the_end else [text, latents], dim=1)

    @torch.no_grad()
    def __call__(self):
        self.scheduler.set_timesteps(STEPS)
        latents, size = self.prepare_latents(), 5
        own = slice(None, size) if self.at_the_end else slice(-size, None)
        for t in self.scheduler.timesteps:
            cond = self.transformer(self.with_text(latents), t, self.texts[1])[:, own]
            uncond = self.other_transformer(latents, t, self.texts[0])
            self.given.append((cond, uncond))
            out = W * cond + (1 - W) * uncond
            latents = self.scheduler.step(-out, t, latents).prev_sample
        return latents


@pytest.mark.parametrize("at_the_end", [False, True])
def test_what_a_call_says_of_the_latents_stands_for_the_other_without_the_text(at_the_end):
    networks = Network(), Network(0.5)
    pipe = TextFirstPipeline(*networks, DDIMScheduler(), at_the_end=at_the_end)
    with guided_by(pipe, lambda steps: GuidanceSchedule.last(steps, 2)) as trace:
        pipe()
    assert trace.steps.rows.tolist() == [4, 4, 2, 2]
    assert networks[1].rows == [2, 2]
    assert all(torch.equal(cond, uncond) for cond, uncond in pipe.given[2:])
    assert not any(torch.equal(cond, uncond) for cond, uncond in pipe.given[:2])


def test_a_policy_that_needs_more_than_one_of_two_calls_is_refused_there():
    pipe = TextFirstPipeline(Network(), Network(0.5), DDIMScheduler())
    with guided_by(pipe, None):
        pipe()
    refused = pytest.raises(ValueError, match="latents of other shapes, ")
    with refused, guided_by(pipe, parse("cached:2").policy(W)):
        pipe()


def test_tokens_that_are_not_the_latents_stand_for_nothing(monkeypatch):
    pipe = TextFirstPipeline(Network(), Network(0.5), DDIMScheduler())
    monkeypatch.setattr(pipe, "with_text", lambda latents: torch.ones(2, 12, 3))
    refused = pytest.raises(ValueError, match="latents of other shapes, ")
    with refused, guided_by(pipe, GuidanceSchedule.none):
        pipe()
