import sys
from contextlib import nullcontext

import pytest
import torch
from diffusers import FirstBlockCacheConfig, HeunDiscreteScheduler
from torch.utils.flop_counter import FlopCounterMode

from sdbench.instruments.cost import FlopProbe
from sdbench.models.pipeline import denoiser_of
from sdbench.variants.accelerators import accelerated, import_package
from sdbench.variants.adapters import applied
from sdbench.variants.grammar import parse
from sdbench.variants.guidance import guided_by
from sdbench.variants.methods.deepcache import deepcache
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import MissingPackage, Unsupported
from sdbench.variants.variant import Accelerator
from tests import families, tiny
from tests.families import concatenated

UNETS = {"sd": tiny.stable_diffusion, "sdxl": tiny.stable_diffusion_xl}
every_unet = pytest.mark.parametrize("make", UNETS.values(), ids=UNETS)
STEPS = 6


def every(pipe, interval):
    """DeepCache with any interval; that of 1, which keeps nothing, is not in the grammar."""
    return accelerated(pipe, Accelerator("deepcache", lambda pipe: deepcache(pipe, interval)))


def under(pipe, text, **changes):
    """Latents and rows of every step of a call of a variant."""
    with applied(pipe, parse(text), guidance_scale=7.5) as trace:
        latents = tiny.run(pipe, num_inference_steps=STEPS, **changes)
    return latents, trace.steps["rows"].tolist()


def counted(pipe, text):
    """What a call of a variant gives, and its FLOPs."""
    with FlopCounterMode(display=False) as counter:
        latents, rows = under(pipe, text)
    return latents, rows, counter.get_total_flops()


@every_unet
@pytest.mark.parametrize(
    "text", ["deepcache:3", "tgate:3", "last:50%+deepcache:2", "every:2+deepcache:3"]
)
def test_an_accelerator_saves_work_and_leaves_the_pipeline_as_found(make, text):
    pipe = make()
    plain, _, work = counted(pipe, "cfg")
    before = _attributes(pipe)
    latents, _, flop = counted(pipe, text)
    again, _ = under(pipe, text)
    assert flop < work
    assert torch.isfinite(latents).all()
    assert torch.equal(latents, again)
    assert not torch.equal(latents, plain)
    assert _attributes(pipe) == before
    assert torch.equal(under(pipe, "cfg")[0], plain)


def _attributes(pipe):
    """Names of what the pipeline and every module of its denoiser hold, and their classes."""
    modules = {
        name: (type(module), set(vars(module)))
        for name, module in denoiser_of(pipe).named_modules()
    }
    return modules | {"pipeline": (type(pipe), set(vars(pipe)))}


@every_unet
def test_a_cache_refreshed_in_every_step_changes_nothing(make):
    pipe = make()
    with every(pipe, 1):
        assert torch.equal(tiny.run(pipe), pipe_alone := tiny.run(pipe))
    assert torch.equal(pipe_alone, tiny.run(pipe))


@every_unet
def test_kept_features_follow_the_rows_of_a_schedule(make):
    """With a refresh in every step, guidance comes and goes as it does without a cache."""
    pipe = make()
    schedule = GuidanceSchedule.from_mask([True, False, True, True, False, False])
    found = []
    for attach in (nullcontext(), every(pipe, 1)):
        with attach, guided_by(pipe, schedule) as trace:
            found.append(tiny.run(pipe, num_inference_steps=STEPS))
        assert trace.steps["guided"].tolist() == list(schedule.mask)
    assert torch.equal(*found)


def test_features_are_kept_by_evaluations_whatever_the_scheduler_calls_a_step():
    """Heun has two evaluations in a step, at the same timestep."""
    pipe = tiny.stable_diffusion(HeunDiscreteScheduler)
    whole = []
    forward = pipe.unet.mid_block.forward

    def counted(*args, **kwargs):
        whole.append(1)
        return forward(*args, **kwargs)

    pipe.unet.mid_block.forward = counted
    with every(pipe, 3), guided_by(pipe, None) as trace:
        tiny.run(pipe, num_inference_steps=5)
    assert len(trace.steps) == 9
    assert len(whole) == 3


@pytest.mark.parametrize("text", ["first:2+deepcache:3", "deepcache:4"])
def test_nothing_is_kept_from_call_to_call(text):
    pipe = tiny.stable_diffusion()
    with applied(pipe, parse(text), guidance_scale=7.5):
        assert torch.equal(
            tiny.run(pipe, num_inference_steps=5), tiny.run(pipe, num_inference_steps=5)
        )


@every_unet
def test_the_gate_drops_guidance(make):
    _, rows = under(make(), "tgate:3")
    assert rows == [4, 4, 4, 2, 2, 2]


def test_after_an_exception_the_pipeline_is_as_before():
    pipe = tiny.stable_diffusion()
    plain = tiny.run(pipe)
    for text in ("deepcache:2", "tgate:2"):
        attached = accelerated(pipe, parse(text).accelerator)
        with pytest.raises(ZeroDivisionError), attached:
            tiny.run(pipe, callback_on_step_end=lambda *_: 1 / 0)
    assert torch.equal(tiny.run(pipe), plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["firstblock:0.5", "taylorseer:3", "pab:2", "fastercache:2", "magcache:0.5"]
)
def test_caches_of_diffusers_run_on_the_transformers_they_know(text):
    pipe = tiny.flux()
    plain, _, work = counted(pipe, "cfg")
    latents, rows, flop = counted(pipe, text)
    assert flop < work
    assert rows == [4] * STEPS
    assert torch.isfinite(latents).all()
    assert torch.equal(latents, under(pipe, text)[0])
    assert torch.equal(under(pipe, "cfg")[0], plain)


def full_of_all(pipe, text):
    """How many evaluations of a call ran in full, and of how many."""
    probe = FlopProbe()
    running = applied(pipe, parse(text), guidance_scale=5.0, listeners=[probe])
    with probe, running as trace:
        tiny.run(pipe, num_inference_steps=STEPS)
    return probe.full_forwards, trace.steps["forwards"].sum()


def test_each_half_of_a_video_has_a_history_which_ends_where_guidance_skips_a_step():
    pipe = families.make("wan")
    assert full_of_all(pipe, "cfg") == (12, 12)
    assert full_of_all(pipe, "seacache:100") == (6, 12)  # at most two steps in a row are left out
    # The conditional half as before; the other one, in every second step, in full.
    assert full_of_all(pipe, "every:2+seacache:100") == (3 + 3, 9)
    assert full_of_all(pipe, "last:50%+seacache:100") == (3 + 1, 9)


def test_a_cache_is_inactive_where_the_pipeline_does_not_tell_the_step():
    pipe = tiny.flux()
    plain, _ = under(pipe, "cfg")
    assert torch.equal(under(pipe, "seacache:100")[0], plain)
    assert full_of_all(pipe, "seacache:100") == (2 * STEPS, 2 * STEPS)


@pytest.mark.parametrize(
    ("make", "text", "reason"),
    [
        (tiny.flux, "deepcache:3", "DeepCache works on UNets, but FluxPipeline has none"),
        (tiny.flux, "tgate:3", "T-GATE works on UNets"),
        (
            lambda: tiny.stable_diffusion(HeunDiscreteScheduler),
            "tgate:3",
            "T-GATE miscounts the steps of HeunDiscrete",
        ),
        (
            concatenated.ltx,
            "magcache:0.06",
            "magnitudes calibrated on the model, and diffusers has Flux's only",
        ),
        (tiny.image_to_image, "tgate:3", "T-GATE has no loop for StableDiffusionImg2ImgPipeline"),
        (
            tiny.stable_diffusion,
            "firstblock:0.1",
            "diffusers has no caches for UNet2DConditionModel",
        ),
    ],
)
def test_a_pipeline_that_a_method_does_not_know_is_unsupported(make, text, reason):
    with pytest.raises(Unsupported, match=reason), applied(make(), parse(text), guidance_scale=7.5):
        pass


@pytest.mark.parametrize(("text", "package"), [("deepcache:3", "DeepCache"), ("tgate:3", "tgate")])
def test_a_missing_package_names_the_extra(monkeypatch, text, package):
    monkeypatch.setitem(sys.modules, package, None)
    running = applied(tiny.stable_diffusion(), parse(text), guidance_scale=7.5)
    with (
        pytest.raises(
            ValueError, match=rf"{package} is not installed: pip install 'sdbench\[accelerators\]'"
        ),
        running,
    ):
        pass


def test_a_package_that_an_accelerator_needs_is_named(monkeypatch, tmp_path):
    (tmp_path / "halfthere.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackage, match="halfthere does not import: no_such_package is not"):
        import_package("halfthere")


def test_an_accelerator_for_other_versions_is_unsupported(monkeypatch, tmp_path):
    (tmp_path / "outdated.py").write_text("from diffusers import NoSuchPipeline")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Unsupported, match="outdated does not import with the installed packages"):
        import_package("outdated")


def test_a_cache_that_is_on_already_is_no_unknown_transformer():
    pipe = tiny.flux()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    running = applied(pipe, parse("firstblock:0.05"), guidance_scale=4.0)
    with (
        pytest.raises(ValueError, match=r"already has a cache enabled: disable_cache\(\)"),
        running,
    ):
        pass
    assert pipe.transformer.is_cache_enabled


def test_two_calls_for_one_step_are_refused():
    running = applied(
        tiny.stable_diffusion(), parse("deepcache:3"), guidance_scale=7.5, sequential=True
    )
    with pytest.raises(ValueError, match="both halves must be in it"), running:
        pass
