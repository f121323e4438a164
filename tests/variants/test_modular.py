"""Modular pipelines under schedules, and guiders in the place of their own."""

import pytest
import torch
from diffusers import AdaptiveProjectedGuidance, ClassifierFreeGuidance, SkipLayerGuidance
from diffusers.guiders import SmoothedEnergyGuidance
from diffusers.hooks import LayerSkipConfig

from sdbench.models.modular import given
from sdbench.variants.adapters import applied
from sdbench.variants.grammar import parse
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Unsupported
from tests import tiny
from tests.families import modular
from tests.families.modular import run

ON_OFF_ON = [True, False, False, True]

every_family = pytest.mark.parametrize("family", modular.FAMILIES)


def under(pipe, text, **changes):
    """Latents of a variant, and its steps."""
    with applied(pipe, parse(text), guidance_scale=5.0) as trace:
        return run(pipe, **changes), trace.steps


@every_family
def test_full_guidance_and_observing_are_bitwise_the_plain_pipeline(family):
    pipe = modular.FAMILIES[family]()
    plain = run(pipe)
    for schedule in (GuidanceSchedule.full, None):
        with guided_by(pipe, schedule) as trace:
            assert torch.equal(run(pipe), plain)
        assert trace.steps.guided.tolist() == [True] * 4
        assert trace.steps.rows.tolist() == [2 * modular.IMAGES] * 4


@every_family
@pytest.mark.parametrize("mask", [ON_OFF_ON, [False] * 4], ids=["on-off-on", "none"])
def test_a_mask_equals_overwriting_the_unconditional_prediction(family, mask):
    pipe = modular.FAMILIES[family]()
    plain = run(pipe)
    with tiny.overwritten(pipe, mask, two_calls=True):
        expected = run(pipe)
    with guided_by(pipe, GuidanceSchedule.from_mask(mask)) as trace:
        tiny.assert_same_latents(run(pipe), expected)
    assert torch.equal(run(pipe), plain)
    assert not torch.allclose(plain, expected, rtol=1e-3, atol=1e-3)  # the oracle tells masks apart
    assert trace.steps.guided.tolist() == mask
    assert trace.steps.rows.tolist() == [modular.IMAGES * (1 + guided) for guided in mask]


def test_the_scale_of_the_guider_counts_where_the_pipeline_is_called_by_hand():
    pipe = modular.stable_diffusion_xl()
    expected = run(pipe, guidance_scale=3.0)
    pipe.guider.guidance_scale = 3.0
    call = {name: value for name, value in pipe.call.items() if name != "guidance_scale"}
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(modular.IMAGES)]
    with guided_by(pipe, GuidanceSchedule.full):
        by_hand = pipe(**call, generator=generators, output="latents")
    assert torch.equal(by_hand, expected)


def test_a_step_that_the_guider_leaves_unguided_stays_so():
    pipe = modular.stable_diffusion_xl()
    pipe.guider = ClassifierFreeGuidance(guidance_scale=5.0, stop=0.5)
    with guided_by(pipe, GuidanceSchedule.full) as trace:
        run(pipe)
    assert trace.steps.guided.tolist() == [True, True, False, False]


def test_a_guider_takes_the_place_of_the_pipelines_own():
    pipe = modular.stable_diffusion_xl()
    own, plain = pipe.guider, run(pipe)
    with given(pipe, "guider", AdaptiveProjectedGuidance(guidance_scale=5.0, eta=0.0)):
        expected = run(pipe)
    latents, steps = under(pipe, "guider:apg")
    assert torch.equal(latents, expected)
    assert not torch.allclose(latents, plain, rtol=1e-3, atol=1e-3)
    assert steps.rows.tolist() == [2 * modular.IMAGES] * 4
    assert pipe.guider is own
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("kind", ["apg", "tcfg"])
def test_a_guider_in_the_place_and_the_policy_make_the_same(kind):
    pipe = modular.stable_diffusion_xl()
    variant = parse(f"guider:{kind}")
    in_place, _ = under(pipe, variant.name)
    with guided_by(pipe, variant.policy(5.0)):
        by_policy = run(pipe)
    tiny.assert_same_latents(in_place, by_policy, tolerance=1e-4)


def test_layers_are_left_out_of_a_third_prediction_from_the_second_step_on():
    pipe = modular.FAMILIES["wan-modular"]()
    plain = run(pipe)
    with tiny.counted_rows(pipe) as counted:
        latents, steps = under(pipe, "guider:slg,0")
    assert steps.rows.tolist() == [4, 6, 6, 6]
    assert sum(counted) == steps.rows.sum()
    assert not torch.allclose(latents, plain, rtol=1e-3, atol=1e-3)

    own = SkipLayerGuidance(
        guidance_scale=5.0,
        skip_layer_config=LayerSkipConfig([0]),
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
    )
    with given(pipe, "guider", own):
        expected = run(pipe)
    assert torch.equal(latents, expected)
    assert torch.equal(run(pipe), plain)


def test_attention_is_perturbed_in_a_third_prediction():
    pipe = modular.FAMILIES["qwen-image-modular"]()
    plain = run(pipe)
    latents, steps = under(pipe, "guider:pag,0")
    assert steps.rows.tolist() == [4, 6, 6, 6]
    assert not torch.allclose(latents, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "text", "reason"),
    [
        ("sdxl-modular", "guider:slg,0", "has no stack of blocks"),
        ("sd3-modular", "guider:slg,0", "in the wrong order"),
        ("wan-modular", "guider:slg,7", "matching the provided indices"),
        ("krea-2-modular", "guider:pag,0", "leaves no layers of Krea2Transformer2DModel out"),
    ],
)
def test_what_diffusers_cannot_leave_out_is_unsupported(family, text, reason):
    with pytest.raises(Unsupported, match=reason):
        under(modular.FAMILIES[family](), text)


def test_a_third_prediction_needs_a_pipeline_with_a_guider():
    with pytest.raises(Unsupported, match="has no guider"):
        under(tiny.stable_diffusion_3(), "guider:slg,0")


def test_smoothed_energy_guidance_of_diffusers_smoothes_nothing():
    """Why there is no `guider:seg`: it never counts its calls, so its hooks are never put on."""
    pipe = modular.FAMILIES["wan-modular"]()
    plain = run(pipe)
    with given(pipe, "guider", SmoothedEnergyGuidance(seg_guidance_layers=[0])):
        tiny.assert_same_latents(run(pipe), plain)
