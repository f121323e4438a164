"""What a pipeline's call takes, where users derive pipelines of their own."""

import functools

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline

from sdbench.models.pipeline import call_parameters, guidance_arguments, method_parameters
from sdbench.study.check import prepare
from sdbench.study.study import Study
from tests import tiny


class HandsOn(StableDiffusionPipeline):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class WithItsOwn(StableDiffusionPipeline):
    def __call__(self, prompt, *, mood="calm", **kwargs):
        return super().__call__(f"{prompt}, {mood}", **kwargs)


class Grandchild(WithItsOwn):
    def __call__(self, *args, echo=1, **kwargs):
        return super().__call__(*args, **kwargs)


class Logged:
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Mixed(Logged, StableDiffusionPipeline):
    pass


def logged(call):
    @functools.wraps(call)
    def wrapper(*args, **kwargs):
        return call(*args, **kwargs)

    return wrapper


class Decorated(StableDiffusionPipeline):
    @logged
    @torch.no_grad()
    def __call__(self, *args, mood="calm", **kwargs):
        return super().__call__(*args, **kwargs)


def bare(call):
    return lambda *args, **kwargs: call(*args, **kwargs)


class DecoratedWithoutItsNames(StableDiffusionPipeline):
    __call__ = bare(StableDiffusionPipeline.__call__)


class Partial(StableDiffusionPipeline):
    __call__ = functools.partialmethod(StableDiffusionPipeline.__call__, guidance_rescale=0.7)


class Inherits(HandsOn):
    """Its call is its parent's."""


HANDING_ON = [
    HandsOn,
    WithItsOwn,
    Grandchild,
    Mixed,
    Decorated,
    DecoratedWithoutItsNames,
    Partial,
    Inherits,
]


def derived(kind, pipe):
    """A pipeline as one of a class derived from its own."""
    pipe.__class__ = kind
    return pipe


@pytest.mark.parametrize("kind", HANDING_ON)
def test_a_subclass_that_hands_on_takes_what_its_parent_takes(kind):
    taken = call_parameters(derived(kind, tiny.stable_diffusion()))
    assert taken >= call_parameters(tiny.stable_diffusion()) >= {"prompt", "guidance_rescale"}


@pytest.mark.parametrize(
    ("kind", "own"),
    [(WithItsOwn, {"mood"}), (Grandchild, {"mood", "echo"}), (Decorated, {"mood"})],
)
def test_a_subclass_takes_its_own_arguments_too(kind, own):
    pipe = derived(kind, tiny.stable_diffusion())
    assert call_parameters(pipe) - call_parameters(tiny.stable_diffusion()) == own


class Fewer(StableDiffusionPipeline):
    def __call__(self, prompt, num_inference_steps=4):
        return super().__call__(prompt, num_inference_steps=num_inference_steps)


class ByPositionOnly(StableDiffusionPipeline):
    def __call__(self, *args):
        return super().__call__(*args)


class ChildOfFewer(Fewer):
    def __call__(self, prompt, mood="calm", **kwargs):
        return super().__call__(f"{prompt}, {mood}", **kwargs)


class UnnamedFirst(StableDiffusionPipeline):
    def __call__(self, prompt, /, seed=0):
        return super().__call__(prompt)


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        (Fewer, {"prompt", "num_inference_steps"}),
        (ByPositionOnly, set()),
        (ChildOfFewer, {"prompt", "mood", "num_inference_steps"}),
        (UnnamedFirst, {"seed"}),
    ],
)
def test_a_subclass_that_does_not_hand_on_takes_only_its_own(kind, taken):
    assert call_parameters(derived(kind, tiny.stable_diffusion())) == taken


def test_the_names_of_the_rest_are_no_arguments():
    assert not {"self", "args", "kwargs"} & call_parameters(tiny.stable_diffusion())


class DerivedFlux(FluxPipeline):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


@pytest.mark.parametrize("kind", [FluxPipeline, DerivedFlux])
def test_a_subclass_of_flux_guides_by_its_true_scale(kind):
    asked = guidance_arguments(derived(kind, tiny.flux()), 4.0, rows=2)
    assert asked == {"true_cfg_scale": 4.0, "negative_prompt": ["", ""]}


def test_positional_parameters_keep_the_order_of_the_call():
    class Parent:
        def step(self, output, timestep, sample, eta=0.0):
            """Take them in this order."""

    class Child(Parent):
        def step(self, output, *args, verbose=False, **kwargs):
            """Hand on the rest."""

    names = [parameter.name for parameter in method_parameters(Child, "step")]
    assert names == ["output", "verbose", "timestep", "sample", "eta"]


def study_with(**arguments):
    return Study(
        model="tiny",
        variants=["cfg", "last:50%", "rescale:0.7"],
        prompts=tiny.PROMPTS,
        seeds=[0],
        num_steps=2,
        guidance_scale=5.0,
        arguments=arguments,
        metrics=(),
    )


def test_a_study_gives_a_subclass_what_its_parent_takes():
    pipe = derived(HandsOn, tiny.stable_diffusion())
    assert prepare(pipe, study_with(eta=0.5)).unsupported == {}


def test_what_no_ancestor_takes_is_refused():
    pipe = derived(Grandchild, tiny.stable_diffusion())
    with pytest.raises(ValueError, match="Grandchild takes no argument 'eco'"):
        prepare(pipe, study_with(eco=2))


def test_the_names_of_the_rest_are_refused():
    with pytest.raises(ValueError, match="takes no argument 'kwargs'"):
        prepare(tiny.stable_diffusion(), study_with(kwargs={}))
