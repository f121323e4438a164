"""Where a call's numbers stopped being finite is told, and what they show is not judged."""

import pytest
import torch

from sdbench.instruments.finite import FiniteProbe, NotFinite, not_numbers
from sdbench.variants.trace import Step

ONES = torch.ones(2, 4, 8, 8)


def broken(count, value=float("nan")):
    tensor = ONES.clone()
    tensor.view(-1)[:count] = value
    return tensor


def probed(*steps):
    probe = FiniteProbe()
    probe.loop_begins(0, len(steps), 2)
    for index, (cond, given, result) in enumerate(steps):
        probe.step_ends(Step(0, index, cond=cond, given=given, result=result))
    return probe


def test_finite_latents_and_images_pass():
    probed((ONES, ONES, ONES), (ONES, None, ONES)).require(ONES, kind="image")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_step_with_broken_latents_is_named(value):
    probe = probed((ONES, ONES, ONES), (ONES, ONES, broken(3, value)), (ONES, ONES, broken(512)))
    said = "not finite: 3 of 512 values of the latents after step 1, by the scheduler"
    with pytest.raises(NotFinite, match=said):
        probe.require(broken(512), kind="image")


@pytest.mark.parametrize("half", ["conditional", "unconditional"])
def test_a_broken_prediction_is_the_denoisers(half):
    cond, given = (broken(1), ONES) if half == "conditional" else (ONES, broken(1))
    with pytest.raises(NotFinite, match="after step 0, by the denoiser"):
        probed((cond, given, broken(1))).require(ONES, kind="image")


def test_latents_that_recover_are_told_all_the_same():
    with pytest.raises(NotFinite, match="after step 0"):
        probed((ONES, ONES, broken(1)), (ONES, ONES, ONES)).require(ONES, kind="image")


def test_broken_pixels_are_counted_by_image():
    said = "5 of 512 values of the pixels, in 1 of 2 images"
    with pytest.raises(NotFinite, match=said):
        probed((ONES, ONES, ONES)).require(broken(5), kind="image")


def test_pixels_that_are_cut_later_are_seen_at_the_decoder():
    probe = probed((ONES, ONES, ONES))
    probe.decoded(broken(5, float("inf")))
    probe.decoded(ONES)
    with pytest.raises(NotFinite, match="5 of 1024 values of the pixels, by the decoder"):
        probe.require(ONES, kind="image")


def test_a_probe_forgets_the_call_before():
    probe = probed((ONES, ONES, broken(1)))
    probe.loop_begins(1, 1, 2)
    probe.step_ends(Step(1, 0, cond=ONES, given=ONES, result=ONES))
    probe.require(ONES, kind="image")


def test_half_precision_that_overflowed_is_seen():
    large = torch.full((2, 4), 6e4, dtype=torch.float16)
    with pytest.raises(NotFinite, match="8 of 8 values"):
        probed((large, large, large * 2)).require(large, kind="latent")


def test_figures_that_are_no_numbers_are_named():
    rows = [
        {"step": 0, "guidance_cosine": float("nan"), "sigma": float("inf")},
        {"step": 1, "guidance_cosine": None, "sigma": 2.0},
    ]
    said = "not a number: guidance_cosine at 1 of 2 steps, the first of them 0"
    assert not_numbers(rows) == said
    assert not_numbers(rows[1:]) is None
