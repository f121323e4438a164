import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn

from sdbench.instruments.cost import FlopProbe, NoFormula, denoiser_flop, flop_per_row


def test_linear():
    assert denoiser_flop(nn.Linear(5, 7), torch.ones(3, 5)) == 2 * 3 * 5 * 7


def test_grouped_strided_convolution():
    convolution = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    out_pixels, taps = 8 * 8, 3 * 3
    assert denoiser_flop(convolution, torch.ones(2, 4, 16, 16)) == 2 * 2 * out_pixels * 6 * taps * (
        4 // 2
    )


class Attention(nn.Module):
    def forward(self, query, key, value):
        return nn.functional.scaled_dot_product_attention(query, key, value)


def test_attention():
    query, key, value = torch.ones(2, 3, 10, 8), torch.ones(2, 3, 12, 8), torch.ones(2, 3, 12, 8)
    scores, weighted = 2 * 10 * 12 * 8, 2 * 10 * 12 * 8
    assert denoiser_flop(Attention(), query, key, value) == 2 * 3 * (scores + weighted)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def unet_flop(unet, rows):
    return denoiser_flop(unet, torch.ones(rows, 4, 8, 8), torch.tensor(3), torch.ones(rows, 7, 16))


def test_unet_counts_the_same_with_fused_and_written_out_attention(unet):
    counts = []
    for processor in (AttnProcessor2_0(), AttnProcessor()):
        unet.set_attn_processor(processor)
        counts.append(unet_flop(unet, 2))
    assert counts[0] == counts[1] > 0


def test_unet_flop_is_proportional_to_rows(unet):
    assert (
        flop_per_row(unet_flop(unet, 4), 4)
        == flop_per_row(unet_flop(unet, 2), 2)
        == unet_flop(unet, 1)
    )


@torch.library.custom_op("sdbench_test::opaque_product", mutates_args=())
def opaque_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(a.numpy() @ b.numpy())


class Opaque(nn.Module):
    def forward(self, x):
        return opaque_product(x, x)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: opaque_product(x, x), "sdbench_test.opaque_product"),
        (lambda x: torch.linalg.svdvals(x), "aten._linalg_svd"),
        (lambda x: torch.mv(x, x[0]), "aten.mv"),
    ],
)
def test_unknown_heavy_operation_is_refused_by_name(operation, name):
    module = nn.Module()
    module.forward = operation
    with pytest.raises(ValueError, match=f"no FLOP formula for {name}"):
        denoiser_flop(module, torch.ones(4, 4))


@pytest.mark.parametrize(
    ("transform", "flop"),
    [
        (lambda x: torch.fft.fft(x + 0j), 5 * 32 * 3),  # four transforms of eight values
        (torch.fft.rfft, 5 * 32 * 3 // 2),
        (lambda x: torch.fft.irfft(torch.ones(4, 5) + 0j), 5 * 32 * 3 // 2),
        (lambda x: torch.fft.fft2(x + 0j), 5 * 32 * 5),
    ],
)
def test_fourier_transforms_have_the_usual_count(transform, flop):
    module = nn.Module()
    module.forward = transform
    assert denoiser_flop(module, torch.ones(4, 8)) == flop


def test_a_denoiser_runs_to_its_end_before_its_count_is_refused():
    ends = []
    module = nn.Sequential(Opaque(), nn.Identity())
    module[1].register_forward_hook(lambda *_: ends.append(True))
    with pytest.raises(NoFormula):
        denoiser_flop(module, torch.ones(4, 4))
    assert ends == [True]


@pytest.mark.parametrize("places", [[0], [1], [0, 2]])
def test_a_probe_that_saw_an_unknown_operation_has_no_count(places):
    with FlopProbe() as probe:
        for place in range(3):
            probe.denoiser_begins(None, 1)
            (Opaque() if place in places else nn.Linear(4, 4))(torch.ones(4, 4))
            probe.denoiser_ends(None)
    assert probe.flop is None


def test_light_operations_count_as_zero():
    light = nn.Sequential(
        nn.GroupNorm(2, 4), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Softmax(1), nn.AvgPool2d(2)
    )
    assert denoiser_flop(light, torch.ones(1, 4, 8, 8)) == 0


def test_flop_per_row_refuses_no_rows():
    with pytest.raises(ValueError, match="rows must be at least 1"):
        flop_per_row(10, 0)


def test_counting_ends_with_a_call_that_fails_midway():
    def fail(probe):
        probe.denoiser_begins(None, 1)
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"), FlopProbe() as probe:
        fail(probe)
    assert torch.utils._python_dispatch._get_current_dispatch_mode_stack() == []
