from contextlib import contextmanager

import pytest
import torch

from sdbench.models.students import LORA_FILE
from sdbench.variants.accelerators import accelerated
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.student_weights import student_in
from sdbench.variants.variant import Accelerator
from tests import tiny
from tests.tiny import run
from tests.variants.students import FILES, SCALE, saved


@contextmanager
def halving(pipe):
    """An accelerator that leaves an attribute behind, as packages do."""
    pipe.unet.leftover = True
    yield


def accelerator(pipe):
    return accelerated(pipe, Accelerator("halving", halving))


def schedule(pipe):
    return guided_by(pipe, GuidanceSchedule.none)


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    for method in FILES:
        saved(folder / method, method=method)
    return folder


@pytest.fixture
def block(student_folder):
    """Makes a block of a pipeline by what it is for."""

    def make(purpose, pipe):
        if purpose in FILES:
            return student_in(pipe, student_folder / purpose / FILES[purpose], guidance_scale=SCALE)
        return {"schedule": schedule, "accelerator": accelerator}[purpose](pipe)

    return make


def attributes(pipe):
    """Those of the denoiser; peft leaves a note that it was there."""
    return {k: v for k, v in vars(pipe.unet).items() if k != "_hf_peft_config_loaded"}


CHANGING = ("lora", "full", "accelerator")
PAIRS = [(first, second) for first in CHANGING for second in CHANGING]
PAIRS += [("schedule", second) for second in CHANGING]
PAIRS += [(first, "schedule") for first in CHANGING]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids="-".join)
def test_a_denoiser_is_not_changed_while_another_pipeline_uses_it(block, first, second):
    pipe = tiny.stable_diffusion()
    other = tiny.sharing(pipe)
    plain, before = run(pipe), attributes(pipe)
    with block(first, pipe):
        during = run(pipe)
        refused = r"this StableDiffusionPipeline shares its UNet2DConditionModel with a Stable"
        with pytest.raises(ValueError, match=refused), block(second, other):
            pass
        assert torch.equal(run(pipe), during)
    assert attributes(pipe) == before
    assert torch.equal(run(other), plain)
    with block(second, other):
        run(other)
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("purpose", ["lora", "full", "accelerator"])
def test_one_pipeline_may_be_changed_and_scheduled_and_left_in_any_order(block, purpose):
    pipe = tiny.stable_diffusion()
    plain, before = run(pipe), attributes(pipe)
    with block("schedule", pipe), block(purpose, pipe):
        expected = run(pipe)
    changed, scheduled = block(purpose, pipe), block("schedule", pipe)
    changed.__enter__()
    scheduled.__enter__()
    assert torch.equal(run(pipe), expected)
    changed.__exit__(None, None, None)
    run(pipe)
    scheduled.__exit__(None, None, None)
    assert attributes(pipe) == before
    assert torch.equal(run(pipe), plain)


def test_an_accelerator_left_after_the_schedule_leaves_nothing_behind():
    pipe = tiny.stable_diffusion()
    before = attributes(pipe)
    scheduled, changed = schedule(pipe), accelerator(pipe)
    scheduled.__enter__()
    changed.__enter__()
    scheduled.__exit__(None, None, None)
    changed.__exit__(None, None, None)
    assert attributes(pipe) == before


def test_a_student_is_refused_before_its_base_is_looked_at(student_folder):
    pipe = tiny.stable_diffusion()
    other = tiny.sharing(pipe)
    file = student_folder / "lora" / LORA_FILE
    with (
        student_in(pipe, file, guidance_scale=SCALE),
        pytest.raises(ValueError, match="under a student, so it cannot have a student meanwhile"),
        student_in(other, file, guidance_scale=SCALE),
    ):
        pass


def test_pipelines_that_share_weights_in_another_module_share_their_denoiser():
    pipe, other = tiny.stable_diffusion(), tiny.stable_diffusion()
    for name, module in other.unet.named_modules():
        for key in list(module._parameters):
            module._parameters[key] = pipe.unet.get_submodule(name)._parameters[key]
    with schedule(pipe), pytest.raises(ValueError, match="shares its UNet2D"), accelerator(other):
        pass


def test_pipelines_that_share_no_network_are_free():
    pipe, other = tiny.stable_diffusion(), tiny.stable_diffusion()
    with schedule(pipe), accelerator(other), schedule(other):
        run(pipe)
        run(other)
