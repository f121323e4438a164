"""What stops a study before its first call is blamed on what is wrong."""

import sys
from contextlib import contextmanager

import pytest
import torch

from sdbench.study.check import prepare
from sdbench.study.study import Study
from sdbench.variants.grammar import parse
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import MissingPackage
from sdbench.variants.variant import Accelerator, Variant
from tests import tiny

NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def study_of(variant):
    return Study(
        model="tiny",
        variants=["cfg", variant],
        prompts=tiny.PROMPTS,
        seeds=[0],
        num_steps=2,
        guidance_scale=5.0,
        metrics=(),
    )


def raising(error):
    """A variant whose accelerator raises when it is attached."""

    @contextmanager
    def attach(pipe):
        raise error
        yield

    return Variant("own", GuidanceSchedule.full, accelerator=Accelerator("own", attach))


@pytest.mark.parametrize("error", [NO_MEMORY, MemoryError(), torch.OutOfMemoryError("CUDA")])
def test_a_lack_of_memory_is_no_property_of_a_method(error):
    with pytest.raises(type(error)) as caught:
        prepare(tiny.stable_diffusion(), study_of(raising(error)))
    assert caught.value is error


def test_a_package_that_a_method_lacks_stops_the_study():
    error = ModuleNotFoundError("No module named 'no_such_one'", name="no_such_one")
    with pytest.raises(MissingPackage, match="variant 'own': no_such_one is not installed"):
        prepare(tiny.stable_diffusion(), study_of(raising(error)))


def test_what_a_method_itself_raises_is_its_own():
    work = prepare(tiny.stable_diffusion(), study_of(raising(TypeError("not this one"))))
    assert "TypeError: not this one" in work.unsupported["own"]


def test_a_missing_package_keeps_its_kind(monkeypatch):
    monkeypatch.setitem(sys.modules, "DeepCache", None)
    with pytest.raises(MissingPackage, match="variant 'deepcache:3': DeepCache is not installed"):
        prepare(tiny.stable_diffusion(), study_of(parse("deepcache:3")))


def test_a_pipeline_is_not_blamed_for_the_memory(monkeypatch):
    pipe = tiny.stable_diffusion()

    def fails(*args, **options):
        raise NO_MEMORY

    monkeypatch.setattr(pipe.unet, "forward", fails)
    with pytest.raises(RuntimeError, match="can't allocate memory") as caught:
        prepare(pipe, study_of("last:50%"))
    assert caught.value is NO_MEMORY
