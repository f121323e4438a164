import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from sdbench.models.stored_weights import weights_bytes


def test_weights_count_parameters_buffers_and_shared_storage_once():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = nn.Parameter(first.weight.detach())  # another tensor, the same storage
    norm = nn.BatchNorm1d(4)  # 4 vectors of 4 float32, one int64 counter
    pipe = SimpleNamespace(
        components={"a": first, "b": second, "norm": norm, "scheduler": object()}
    )
    assert weights_bytes(pipe) == 4 * 4 * 4 + 4 * 4 * 4 + 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_packed_weights_of_quantised_layers_count():
    layers = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4)), {nn.Linear})
    assert weights_bytes(SimpleNamespace(components={"unet": layers})) == 8 * 4 + 4 * 4


def test_a_weight_that_is_made_of_several_tensors_counts_them():
    layer = nn.Linear(8, 4, bias=False)
    whole = TwoTensor(torch.ones(4, 8), torch.ones(4, 8))
    layer.weight = nn.Parameter(whole)
    assert weights_bytes(SimpleNamespace(components={"unet": layer})) == 2 * 4 * 8 * 4


def test_weights_that_are_not_in_memory_are_refused():
    pipe = SimpleNamespace(components={"unet": nn.Linear(2, 2, device="meta")})
    with pytest.raises(ValueError, match=re.escape("Linear.weight is on the meta device")):
        weights_bytes(pipe)
