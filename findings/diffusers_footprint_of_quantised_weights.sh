#!/usr/bin/env bash
# diffusers 0.42.1 with torchao 0.18.0 (torch 2.14.1, CPU): `get_memory_footprint`.
#
# The guess: after `quantize_` with int8 weights a model's `get_memory_footprint()` is smaller, as
# the bytes in memory are.
#
# What happens: it does not move by a byte. It adds up `nelement() * element_size()`, and a weight
# that torchao quantised says the size and the dtype that it stands for, not what it is stored in.
# `sum(weight.nbytes)` is wrong alike, and `model.dtype` still says float32. The tensors inside of
# the weight tell the truth.
#
# Output seen:
#   diffusers 0.42.1 torchao 0.18.0
#   get_memory_footprint: 3171856 before, 3171856 after, dtype torch.float32
#   bytes in memory: 3171856 before, 2549840 after
#
# What to do: add up the `__tensor_flatten__` parts of each weight, or measure the memory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 torchao==0.18.0 \
    transformers==5.24.0 accelerate==1.15.0 numpy==2.4.6
cat > "$folder/finding.py" <<'PY'
import sys

import diffusers
import torch
import torchao
from torchao.quantization import Int8WeightOnlyConfig, quantize_


def stored(model):
    total = 0
    for weight in model.parameters():
        inside = getattr(weight, "__tensor_flatten__", None)
        parts = [getattr(weight, name) for name in inside()[0]] if inside else [weight]
        total += sum(part.nbytes for part in parts)
    return total


torch.manual_seed(0)
unet = diffusers.UNet2DConditionModel(
    sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=32, attention_head_dim=4,
)
told, held = [unet.get_memory_footprint()], [stored(unet)]
quantize_(unet, Int8WeightOnlyConfig())
told.append(unet.get_memory_footprint())
held.append(stored(unet))
print(f"diffusers {diffusers.__version__} torchao {torchao.__version__}")
print(f"get_memory_footprint: {told[0]} before, {told[1]} after, dtype {unet.dtype}")
print(f"bytes in memory: {held[0]} before, {held[1]} after")
sys.exit(0 if told[0] == told[1] and held[1] < held[0] else 1)
PY
"$folder/venv/bin/python" "$folder/finding.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
