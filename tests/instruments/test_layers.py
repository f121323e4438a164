"""Which kind a layer is, and in which block: by its class, its name and its call."""

import pytest
import torch
from torch import nn

from sdbench.instruments.layers import (
    CROSS_ATTENTION,
    KINDS,
    OTHER,
    SELF_ATTENTION,
    Place,
    Whereabouts,
    places,
)
from sdbench.models.pipeline import networks_of
from tests import tiny


def visited(pipe):
    """Every place that a call of a pipeline comes to."""
    found = []
    where = Whereabouts(networks_of(pipe), found.append)
    with where.followed():
        tiny.run(pipe)
    return found


def kinds_in(found, part):
    return {place.kind for place in found if place.part == part}


def test_a_unet_has_every_kind_in_its_blocks():
    found = visited(tiny.stable_diffusion())
    assert kinds_in(found, "unet") == set(KINDS)
    blocks = {place.block for place in found if place.part == "unet"}
    assert {"", "mid_block", "down_blocks.0", "up_blocks.0"} <= blocks
    assert not any(block.count(".") > 1 for block in blocks)


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (tiny.stable_diffusion_3, {SELF_ATTENTION}),  # image and text are one sequence
        (tiny.flux, {SELF_ATTENTION}),
    ],
)
def test_attention_to_a_text_is_told_from_attention_within_a_sequence(make, kinds):
    found = kinds_in(visited(make()), "transformer")
    assert found & {SELF_ATTENTION, CROSS_ATTENTION} == kinds
    assert {"feed-forward", "normalisation"} <= found


class Named(nn.Module):
    """Layers whose kind their names tell, and lists of layers."""

    def __init__(self):
        super().__init__()
        self.ffn = nn.Sequential(nn.Linear(2, 2), nn.GELU())
        self.proj_mlp = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(1, 1, 1), nn.SiLU())])


def test_names_tell_where_classes_do_not():
    net = Named()
    found = dict(net.named_modules())
    place_of = {module: (place.block, place.kind) for module, place in places(net, "net")}
    assert place_of[found["ffn"]] == ("", "feed-forward")
    assert found["ffn.0"] not in place_of  # a part of the layer
    assert place_of[found["proj_mlp"]] == ("", "feed-forward")
    assert place_of[found["head"]] == ("", "linear")
    assert place_of[found["blocks.0"]] == ("blocks.0", OTHER)
    assert place_of[found["blocks.0.0"]] == ("blocks.0", "convolution")


def test_what_fails_inside_of_a_layer_leaves_the_place_and_no_hook():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    net = nn.Sequential(nn.Linear(2, 2), Fails())
    where = Whereabouts({"net": net})
    with where.followed(), pytest.raises(RuntimeError, match="broken"):
        net(torch.zeros(1, 2))
    assert where.place == Place("pipeline")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
