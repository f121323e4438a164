#!/usr/bin/env bash
# torchao 0.18.0 on a UNet of diffusers 0.42.1 (torch 2.14.1, CPU): int8 weights and activations.
#
# The guess: with `Int8DynamicActivationInt8WeightConfig` each token of an activation has a scale of
# its own, so an image does not depend on its batch more than it does in float32 (about 1e-6).
#
# What happens: a linear layer by itself is bitwise the same for a row alone and in a batch. Yet the
# output of a whole UNet is a thousand times further off than in float32. Convolutions of another
# batch size round otherwise in the seventh digit. That moves a few activations over the edge to the
# next of 255 levels, and such a step is 3e-3 of the output. So a measurement of what a method does
# to an image must not change the batch, or it measures this.
#
# Output seen (largest difference of an output between a row in a batch of 4 and by itself):
#   torchao 0.18.0 diffusers 0.42.1
#   a linear layer, int8: 0.0e+00
#   a linear layer, int8, inputs changed by 1e-7 of themselves: 3.1e-03 (float32: 4.8e-07)
#   a UNet, float32: 1.4e-06
#   a UNet, int8 weights and activations: 2.6e-03
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 torchao==0.18.0 \
    transformers==5.24.0 accelerate==1.15.0 numpy==2.4.6
cat > "$folder/finding.py" <<'PY'
import copy
import sys

import diffusers
import torch
import torchao
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_


def quantised(network):
    network = copy.deepcopy(network)
    quantize_(network, Int8DynamicActivationInt8WeightConfig())
    return network


def away(one, other):
    return float((one - other).abs().max())


torch.manual_seed(0)
torch.set_grad_enabled(False)
print(f"torchao {torchao.__version__} diffusers {diffusers.__version__}")
linear = torch.nn.Linear(64, 64)
low = quantised(linear)
rows = torch.randn(4, 16, 64)
alone = away(low(rows)[:1], low(rows[:1]))
print(f"a linear layer, int8: {alone:.1e}")
near = rows * (1 + 1e-7 * torch.randn_like(rows))
tipped, plain = away(low(near), low(rows)), away(linear(near), linear(rows))
print(f"a linear layer, int8, inputs changed by 1e-7 of themselves: {tipped:.1e} (float32: {plain:.1e})")

unet = diffusers.UNet2DConditionModel(
    sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=32, attention_head_dim=4,
).eval()
latents, texts = torch.randn(4, 4, 16, 16), torch.ones(4, 4, 32)
found = {}
for name, network in (("float32", unet), ("int8 weights and activations", quantised(unet))):
    whole = network(latents, 1, texts).sample[:1]
    found[name] = away(whole, network(latents[:1], 1, texts[:1]).sample)
    print(f"a UNet, {name}: {found[name]:.1e}")
far, close = found["int8 weights and activations"], found["float32"]
sys.exit(0 if alone == 0 and tipped > 100 * plain and far > 50 * close else 1)
PY
"$folder/venv/bin/python" "$folder/finding.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
