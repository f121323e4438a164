#!/usr/bin/env bash
# torchao 0.18.0 with torch 2.14.1 and a UNet of diffusers 0.42.1 (CPU): quantising one network.
#
# The guess: `quantize_(network, config)` changes that network and nothing else.
#
# What happens: it also sets options of `torch._inductor.config` for the whole process, whether or
# not anything is ever compiled: `coordinate_descent_tuning`, `coordinate_descent_check_all_directions`
# and `force_fuse_int_mm_with_mul` become true. They stay so when the network is gone. So a benchmark
# that quantises one variant compiles all later ones, its baseline too, under other options than the
# run without that variant. `set_inductor_config=False` in the config leaves them alone.
#
# Output seen:
#   torch 2.14.1 torchao 0.18.0 diffusers 0.42.1
#   before: nothing is set
#   int8 weights, as by default, network deleted: coordinate_descent_check_all_directions,
#     coordinate_descent_tuning, force_fuse_int_mm_with_mul (in one line)
#   int8 weights, set_inductor_config=False: nothing is set
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
import torch._inductor.config as options
import torchao
from torchao.quantization import Int8WeightOnlyConfig, quantize_

NAMES = (
    "coordinate_descent_check_all_directions",
    "coordinate_descent_tuning",
    "force_fuse_int_mm_with_mul",
)


def changed():
    return [name for name in NAMES if getattr(options, name)]


def quantised(**how):
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    quantize_(unet, Int8WeightOnlyConfig(**how))


print("torch", torch.__version__.split("+")[0], "torchao", torchao.__version__, end=" ")
print("diffusers", diffusers.__version__)
before = changed()
print("before:", ", ".join(before) or "nothing is set")

quantised()
after = changed()
print("int8 weights, as by default, network deleted:", ", ".join(after) or "nothing is set")

for name in NAMES:
    setattr(options, name, False)
quantised(set_inductor_config=False)
asked = changed()
print("int8 weights, set_inductor_config=False:", ", ".join(asked) or "nothing is set")
sys.exit(0 if (before, after, asked) == ([], list(NAMES), []) else 1)
PY
"$folder/venv/bin/python" "$folder/finding.py" 2> "$folder/said" || { cat "$folder/said"; exit 1; }
