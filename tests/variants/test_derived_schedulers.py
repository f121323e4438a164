"""A scheduler of one's own hands on its arguments by place or by name; its steps are the same."""

import pytest
from diffusers import DDIMScheduler

from sdbench.variants.adapters import applied
from sdbench.variants.grammar import parse
from tests import tiny


class HandsOn(DDIMScheduler):
    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs)


class WithItsOwn(DDIMScheduler):
    def step(self, model_output, *args, verbose=False, **kwargs):
        return super().step(model_output, *args, **kwargs)


class Grandchild(HandsOn):
    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs)


def steps(kind, text):
    pipe = tiny.stable_diffusion(kind)
    with applied(pipe, parse(text), guidance_scale=7.5) as trace:
        tiny.run(pipe)
    return trace.steps


@pytest.mark.parametrize("kind", [HandsOn, WithItsOwn, Grandchild])
@pytest.mark.parametrize("text", ["last:50%", "interval:0.6-5.42", "adaptive:0.9"])
def test_a_derived_scheduler_has_its_parents_steps(kind, text):
    assert steps(kind, text).equals(steps(DDIMScheduler, text))
