"""What two guided steps before a study show."""

import pytest
import torch
from DeepCache import DeepCacheSDHelper
from diffusers import (
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    PyramidAttentionBroadcastConfig,
)
from diffusers.hooks import apply_first_block_cache

from sdbench.models.formula import learn_scale, own_scale
from sdbench.study.taught import require_no_cache, require_noise_of_images, require_one_loop
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from tests import families, tiny
from tests.tiny import run
from tests.variants.test_loops import loops


def test_noise_of_all_images_at_once_is_refused():
    pipe = tiny.stable_diffusion_3()
    require_noise_of_images(pipe, lambda: run(pipe))
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipe.scheduler.config, stochastic_sampling=True
    )
    with pytest.raises(ValueError, match="draws noise from torch's global generator"):
        require_noise_of_images(pipe, lambda: run(pipe))


def test_a_cache_that_was_there_before_is_refused():
    pipe = families.make("wan")
    require_no_cache(pipe)
    pipe.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(100, 800),
            current_timestep_callback=lambda: 500,
        )
    )
    with pytest.raises(ValueError, match="has a cache enabled"):
        require_no_cache(pipe)
    pipe.transformer.disable_cache()
    require_no_cache(pipe)


def test_a_cache_whose_hooks_were_put_there_by_hand_is_refused():
    pipe = families.make("flux")
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"has a cache enabled \(FBCBlockHook, FBCHeadBlockHook\)"):
        require_no_cache(pipe)


def test_deepcache_that_was_on_before_is_refused():
    pipe = tiny.stable_diffusion()
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2)
    helper.enable()
    with pytest.raises(ValueError, match=r"has a cache enabled \(DeepCache\)"):
        require_no_cache(pipe)
    helper.disable()
    require_no_cache(pipe)


def test_several_loops_in_a_call_are_refused():
    require_one_loop(tiny.stable_diffusion())
    require_one_loop(families.make("wan-2.2"))  # two denoisers share the steps
    with pytest.raises(ValueError, match="LoopsPipeline runs several loops in a call"):
        require_one_loop(loops())


class Shifted:
    """Stands for a pipeline that is asked by another number."""


@pytest.mark.parametrize(
    ("own", "formula", "less"), [(4.0, 5.0, 1), (4.0, 4.0, 0), (4.0, 4.6, 0), (0.5, 1.5, 1)]
)
def test_the_number_that_a_pipeline_takes_for_the_scale_is_learnt(own, formula, less):
    pipe = Shifted()
    assert own_scale(pipe, 7.5) == 7.5
    learn_scale(pipe, own=own, formula=formula)
    assert own_scale(pipe, 7.5) == 7.5 - less


@pytest.mark.parametrize("schedule", [None, GuidanceSchedule.full])
def test_a_guided_call_of_a_usual_pipeline_changes_no_scale(schedule):
    pipe = tiny.stable_diffusion()
    with guided_by(pipe, schedule), torch.no_grad():
        run(pipe)
    assert own_scale(pipe, 7.5) == 7.5
