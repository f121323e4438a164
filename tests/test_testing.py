"""The contracts see what they are there to see: each fault is planted once."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from sdbench.instruments.quality import METRICS, Metric
from sdbench.testing import VariantContract, check_metric
from sdbench.variants.grammar import VARIANTS
from sdbench.variants.policy import Policy
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Accelerator, Method, Variant
from tests import tiny


@pytest.fixture(scope="module")
def contract():
    return VariantContract(tiny.stable_diffusion(), guidance_scale=7.5, prompts=tiny.PROMPTS)


class Noisy(Policy):
    """Gives the pipeline other predictions in every call."""

    def unconditional(self, step, cond, uncond):
        return uncond + torch.randn(uncond.shape)


class Infinite(Policy):
    def unconditional(self, step, cond, uncond):
        return uncond * torch.inf


class Mixed(Policy):
    """Lets an image depend on its batch."""

    def unconditional(self, step, cond, uncond):
        return uncond + cond.mean(dim=0, keepdim=True)


def decided(policy):
    return lambda name, argument: Variant(name, GuidanceSchedule.full, policy=lambda w: policy())


def plain(rule):
    return lambda name, argument: Variant(name, rule)


@pytest.mark.parametrize(
    ("build", "promised", "reason"),
    [
        (plain(GuidanceSchedule.full), {"saves_rows": False}, "changes no image"),
        (plain(GuidanceSchedule.full), {"saves_rows": True}, "but saves_rows is True"),
        (plain(GuidanceSchedule.none), {"saves_rows": False}, "but saves_rows is False"),
        (plain(GuidanceSchedule.none), {"saves_work": True}, "but saves_work is True"),
        (decided(Noisy), {"saves_rows": False}, "repeated gives another image"),
        (decided(Infinite), {"saves_rows": False}, "not finite"),
        (decided(Mixed), {"saves_rows": False}, "from the one that is made alone"),
    ],
)
def test_a_broken_variant_is_seen(contract, monkeypatch, build, promised, reason):
    monkeypatch.setitem(VARIANTS, "broken", Method("broken", "broken", "", build, **promised))
    with pytest.raises(AssertionError, match=reason):
        contract.check("broken")


def test_a_pipeline_that_is_left_changed_is_seen(contract, monkeypatch):
    def build(name, argument):  # the same change however often it is made
        with torch.no_grad():
            contract.pipe.unet.conv_out.bias.fill_(0.1)
        return Variant(name, GuidanceSchedule.none)

    before = {name: weight.clone() for name, weight in contract.pipe.unet.state_dict().items()}
    monkeypatch.setitem(VARIANTS, "broken", Method("broken", "broken", "", build))
    try:
        with pytest.raises(AssertionError, match="leaves the pipeline changed"):
            contract.check("broken")
    finally:
        contract.pipe.unet.load_state_dict(before)


@contextmanager
def of_all_networks(pipe):
    """Acts on whoever calls a network of this class meanwhile, not on this pipeline alone."""
    original = type(pipe.unet).forward

    def forward(self, sample, *args, **kwargs):
        return original(self, 0.9 * sample, *args, **kwargs)

    type(pipe.unet).forward = forward
    try:
        yield
    finally:
        type(pipe.unet).forward = original


@pytest.mark.parametrize("takes_turns", [True, False])
def test_an_accelerator_that_acts_on_other_calls_is_seen(contract, monkeypatch, takes_turns):
    method = Accelerator("broken", of_all_networks, takes_turns=takes_turns)

    def build(name, argument):
        return Variant(name, GuidanceSchedule.none, accelerator=method)

    monkeypatch.setitem(VARIANTS, "broken", Method("broken", "broken", "", build))
    if not takes_turns:
        contract.check("broken")
        return
    with pytest.raises(AssertionError, match="beside cfg, step by step: cfg fails, it makes ano"):
        contract.check("broken")


def test_a_good_variant_passes(contract):
    contract.check("last:25%")


@pytest.mark.parametrize("name", ["ssim", "psnr", "flip"])
def test_our_metrics_keep_their_contract(name):
    check_metric(name)


def test_the_contract_is_tried_on_images_of_the_one_size_that_a_metric_reads():
    check_metric("alignment")


def distance(images, reference):
    return (images - reference).square().mean(dim=(1, 2, 3))


def blurred(images, reference):
    """A distance that takes 8 pixels a side."""
    kernel = torch.full((3, 1, 8, 8), 1 / 64)
    smooth = [torch.nn.functional.conv2d(part, kernel, groups=3) for part in (images, reference)]
    return distance(*smooth)


def tall(images, reference):
    if images.shape[3] > images.shape[2]:
        raise ValueError("too wide")
    return distance(images, reference)


@pytest.mark.parametrize("smallest", [8, 100])
def test_a_metric_that_states_the_sizes_it_takes_passes(monkeypatch, smallest):
    metric = Metric("mine", blurred, "reference", False, dict, smallest_side=smallest)
    monkeypatch.setitem(METRICS, "mine", metric)
    check_metric("mine")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"compute": lambda images, reference: distance(images, reference).mean()[None]},
            "not one",
        ),
        ({"compute": lambda images, reference: torch.rand(len(images))}, "repeated gives other"),
        (
            {"compute": lambda images, reference: distance(images, reference) + len(images)},
            "another number when alone",
        ),
        ({"higher_is_better": True}, "nearer to the reference than itself"),
        ({"provenance": lambda: {"version": object()}}, "cannot be stored"),
        ({"compute": blurred}, "takes images of 1 pixels a side, but fails on"),
        ({"compute": blurred, "smallest_side": 7}, "takes images of 7 pixels a side, but fails on"),
        ({"compute": tall}, "takes images of 1 pixels a side, but fails on 1 x 34: ValueError"),
    ],
)
def test_a_broken_metric_is_seen(monkeypatch, changes, reason):
    good = Metric("broken", distance, "reference", False, lambda: {"package": "mine"})
    monkeypatch.setitem(METRICS, "broken", replace(good, **changes))
    with pytest.raises(AssertionError, match=reason):
        check_metric("broken")
