from dataclasses import replace

import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.hooks.faster_cache import _split_low_high_freq

from sdbench.variants.guidance import guided_by
from sdbench.variants.methods.adaptive import Adaptive
from sdbench.variants.methods.cached import CachedOffset, frequencies
from sdbench.variants.methods.guiders import Guider, guider
from sdbench.variants.methods.interval import Interval
from sdbench.variants.methods.rising_scale import WeightSchedule, cosine, linear
from sdbench.variants.policy import Loop, Policy
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Listener, Unsupported
from tests import tiny

FAMILIES = {
    "sd": tiny.stable_diffusion,
    "sd, Euler": lambda: tiny.stable_diffusion(EulerDiscreteScheduler),
    "sd, Heun": lambda: tiny.stable_diffusion(HeunDiscreteScheduler),
    "img2img": tiny.image_to_image,
    "controlnet": tiny.controlnet,
    "sdxl": tiny.stable_diffusion_xl,
    "sd3": tiny.stable_diffusion_3,
    "flux, two calls": tiny.flux,
}
every_family = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)


def under(pipe, schedule, **changes):
    """Latents and steps of a call under a schedule or a policy."""
    with guided_by(pipe, schedule) as trace:
        latents = tiny.run(pipe, **changes)
    return latents, trace.steps


def scale_of(pipe):
    return pipe.call.get("true_cfg_scale", pipe.call.get("guidance_scale"))


@every_family
def test_a_policy_that_changes_nothing_leaves_every_bit(make):
    pipe = make()
    assert torch.equal(under(pipe, Policy())[0], tiny.run(pipe))


@every_family
def test_an_interval_is_the_mask_of_its_noise_levels(make):
    pipe = make()
    sigmas = under(pipe, None)[1]["sigma"]
    lo, hi = sigmas.sort_values().iloc[0], sigmas.sort_values().iloc[-2]
    expected = [lo < sigma <= hi for sigma in sigmas]
    latents, steps = under(pipe, Interval(lo + 1e-6, hi + 1e-6))
    assert steps["guided"].tolist() == expected
    assert torch.equal(latents, under(pipe, GuidanceSchedule.from_mask(expected))[0])


@every_family
def test_a_cache_that_is_always_fresh_leaves_every_bit(make):
    pipe = make()
    assert torch.equal(
        under(pipe, CachedOffset(lambda steps: set(range(steps))))[0], tiny.run(pipe)
    )


@every_family
def test_a_constant_weight_is_guidance_at_that_scale(make):
    pipe = make()
    scale = scale_of(pipe)
    halfway = 1 + (scale - 1) / 2
    name = "true_cfg_scale" if "true_cfg_scale" in pipe.call else "guidance_scale"
    found, steps = under(pipe, WeightSchedule(lambda run, w: halfway, scale))
    tiny.assert_same_latents(found, tiny.run(pipe, **{name: halfway}), tolerance=1e-4)
    assert steps["guided"].all()


@every_family
def test_plain_guidance_by_a_guider_is_the_pipelines_own(make):
    pipe = make()
    policy = Guider(
        lambda scale, flow: ClassifierFreeGuidance(guidance_scale=scale), scale_of(pipe)
    )
    tiny.assert_same_latents(under(pipe, policy)[0], tiny.run(pipe), tolerance=1e-4)


@pytest.mark.parametrize("kind", ["apg", "cfg-zero", "tcfg"])
def test_a_guider_changes_the_latents_and_no_evaluation(kind):
    pipe = tiny.stable_diffusion()
    latents, steps = under(pipe, Guider(lambda scale, flow: guider(kind, scale, flow), 7.5))
    assert steps["rows"].tolist() == [4] * 4
    assert torch.isfinite(latents).all()
    assert not torch.equal(latents, tiny.run(pipe))


def test_a_guided_prediction_is_what_the_guider_says():
    cond, uncond = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    policy = Guider(lambda scale, flow: guider("tcfg", scale, flow), 3.0)
    policy.begins(Loop(4, (2, 4, 8, 8), [1.0] * 4, [1.0] * 4, tiny.scheduler(), False))
    given = policy.unconditional(0, cond, uncond)
    stock = guider("tcfg", 3.0, False)
    stock.set_state(step=0, num_inference_steps=4, timestep=None)
    assert torch.allclose(given + 3.0 * (cond - given), stock.forward(cond, uncond).pred, atol=1e-5)


def test_the_zero_step_of_cfg_zero_is_for_flows():
    assert guider("cfg-zero", 3.0, True).zero_init_steps == 1
    assert guider("cfg-zero", 3.0, False).zero_init_steps == 0


@every_family
def test_a_cached_step_costs_the_conditional_rows(make):
    pipe = make()
    plain = under(pipe, None)[1]["rows"]
    latents, steps = under(pipe, CachedOffset(lambda steps: set(range(0, steps, 2))))
    fresh = steps.index % 2 == 0
    assert (steps["rows"][fresh] == plain[fresh]).all()
    assert (steps["rows"][~fresh] == plain[~fresh] / 2).all()
    assert torch.isfinite(latents).all()


def test_a_cached_step_reuses_the_last_difference():
    policy = CachedOffset(lambda steps: {0})
    policy.begins(Loop(2, (1, 4, 8, 8), [900.0, 500.0], [9.0, 1.0], None, False))
    cond, uncond = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert policy.unconditional(0, cond, uncond) is None
    assert torch.allclose(policy.unconditional(1, 2 * cond, None), 2 * cond + (uncond - cond))


# a warning of diffusers' own code
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
def test_frequencies_are_split_as_diffusers_splits_them():
    latents = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    low, high = frequencies(latents)
    theirs = [
        torch.fft.ifft2(torch.fft.ifftshift(part)).real for part in _split_low_high_freq(latents)
    ]
    assert torch.allclose(low, theirs[0], atol=1e-6)
    assert torch.allclose(high, theirs[1], atol=1e-5)


@pytest.mark.parametrize(
    ("timestep", "low_gain", "high_gain"), [(950, 1.0, 1.0), (500, 1.1, 1.0), (50, 1.0, 1.1)]
)
def test_split_weights_depend_on_the_timestep(timestep, low_gain, high_gain):
    policy = CachedOffset(lambda steps: {0}, split=True)
    policy.begins(Loop(2, (1, 4, 16, 16), [999.0, timestep], [9.0, 1.0], None, False))
    cond, uncond = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    policy.unconditional(0, cond, uncond)
    low, high = frequencies(uncond - cond)
    expected = cond + low_gain * low + high_gain * high
    assert torch.allclose(policy.unconditional(1, cond, None), expected, atol=1e-6)


def test_gains_add_up_until_the_next_refresh():
    policy = CachedOffset(lambda steps: {0, 3}, split=True)
    policy.begins(Loop(4, (1, 4, 16, 16), [999.0, 500.0, 400.0, 350.0], [1.0] * 4, None, False))
    cond, uncond = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    policy.unconditional(0, cond, uncond)
    low, high = frequencies(uncond - cond)
    assert torch.allclose(policy.unconditional(1, cond, None), cond + 1.1 * low + high, atol=1e-6)
    assert torch.allclose(policy.unconditional(2, cond, None), cond + 1.21 * low + high, atol=1e-6)
    policy.unconditional(3, cond, uncond)
    assert torch.equal(policy._parts[0], low)


def test_a_learned_variance_is_no_part_of_the_formula():
    """PixArt predicts it beside the noise, and drops it after guiding."""
    cond, uncond = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    given = []
    for channels, part in ((4, slice(None)), (4, slice(4))):
        policy = Guider(lambda scale, flow: guider("apg", scale, flow), 3.0)
        policy.begins(Loop(4, (2, channels, 8, 8), [1.0] * 4, [1.0] * 4, tiny.scheduler(), False))
        given.append(policy.unconditional(0, cond[:, part], uncond[:, part]))
    assert torch.equal(given[0][:, :4], given[1])
    assert torch.equal(given[0][:, 4:], uncond[:, 4:])


def test_packed_latents_have_no_frequencies():
    with pytest.raises(Unsupported, match="these latents are packed into tokens"):
        under(tiny.flux(), CachedOffset(lambda steps: {0}, split=True))


@every_family
def test_images_that_never_stop_are_guided_to_the_last_bit(make):
    pipe = make()
    assert torch.equal(under(pipe, Adaptive(2.0))[0], tiny.run(pipe))


@every_family
def test_an_image_is_guided_until_its_own_cosine_passes(make):
    """The threshold lies between the cosines of two images, so they stop at different steps."""
    pipe = make()
    cosines = _cosines(pipe)
    images = cosines.shape[1]
    threshold = float(cosines[0].sort().values[images // 2 - 1 : images // 2 + 1].mean())
    latents, steps = under(pipe, Adaptive(threshold))
    stopped_at_once = [image for image in range(images) if cosines[0, image] > threshold]
    assert 0 < len(stopped_at_once) < images
    assert steps["rows"][1] == images + images - len(stopped_at_once)
    first_only = under(pipe, GuidanceSchedule.from_mask([True] + [False] * (len(steps) - 1)))[0]
    tiny.assert_same_latents(latents[stopped_at_once], first_only[stopped_at_once], tolerance=1e-4)
    assert not torch.equal(latents, first_only)


def _cosines(pipe):
    """Cosine of the two clean predictions per step and image, by the policy's own listener."""
    seen = []

    class Watching(Adaptive):
        def scheduler_begins(self, step):
            before = torch.nn.functional.cosine_similarity

            def kept(*args, **kwargs):
                seen.append(before(*args, **kwargs))
                return seen[-1]

            torch.nn.functional.cosine_similarity = kept
            try:
                super().scheduler_begins(step)
            finally:
                torch.nn.functional.cosine_similarity = before

    under(pipe, Watching(2.0))
    return torch.stack(seen)


def test_a_host_that_is_told_late_changes_rows_and_no_image():
    pipe = tiny.stable_diffusion()

    class Late(Adaptive):
        def begins(self, loop):
            super().begins(replace(loop, on_cuda=True))

    at_once, steps = under(pipe, Adaptive(-1.0))
    late, late_steps = under(pipe, Late(-1.0))
    tiny.assert_same_latents(at_once, late)
    assert (steps["rows"].tolist(), late_steps["rows"].tolist()) == ([4, 2, 2, 2], [4, 4, 2, 2])


def test_a_policy_serves_one_call_after_another():
    pipe = tiny.stable_diffusion()
    for policy in (Adaptive(-1.0), CachedOffset(lambda steps: {0}), Interval(0.5, 100)):
        with guided_by(pipe, policy):
            assert torch.equal(tiny.run(pipe), tiny.run(pipe))


def test_weights_rise_and_keep_their_mean():
    runs = torch.linspace(0, 1, 101)
    for rising in (linear, cosine):
        scales = torch.tensor([rising(float(run), 5.0) for run in runs])
        assert (scales.diff() > 0).all()
        assert scales[0] == 1.0
        assert scales.mean() == pytest.approx(5.0)


@pytest.mark.parametrize(
    "policy",
    [CachedOffset(lambda steps: {0, 2}), Adaptive(-1.0), Policy()],
    ids=lambda it: type(it).__name__,
)
def test_halves_one_after_the_other_are_two_evaluations(policy):
    pipe = tiny.stable_diffusion()
    together, steps = under(pipe, policy)
    with guided_by(pipe, policy, sequential=True) as trace:
        apart = tiny.run(pipe)
    tiny.assert_same_latents(apart, together)
    assert trace.steps["rows"].tolist() == steps["rows"].tolist()
    assert trace.steps["forwards"].tolist() == [2 if guided else 1 for guided in steps["guided"]]


def test_deciding_is_part_of_a_steps_time():
    """The policy decides between the denoiser and the scheduler, where the step's clock runs."""
    order = []

    class Watched(Adaptive):
        def scheduler_begins(self, step):
            super().scheduler_begins(step)
            order.append("decided")

    class Probe(Listener):
        def denoiser_ends(self, step):
            order.append("denoiser")

        def scheduler_ends(self, step):
            order.append("end")

    pipe = tiny.stable_diffusion()
    with guided_by(pipe, Watched(0.999), listeners=[Probe()]):
        tiny.run(pipe)
    assert order[:3] == ["denoiser", "decided", "end"]
