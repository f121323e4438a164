#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: a LoRA and fuse_qkv_projections on a UNet (torch 2.14.1).
#
# The guess: joining the projections of attention changes the speed only. A LoRA acts as before, and
# unfuse_qkv_projections gives the memory back.
#
# What happens: fuse_qkv_projections makes a copy of the weights (to_qkv, and to_kv in cross
# attention) and computes with the copy. The old layers stay, and load_lora_weights, fuse_lora and
# unload_lora_weights work on the old layers. So a LoRA that comes after acts on nothing that is
# joined: not on q, k and v of self attention, not on k and v of cross attention. Its other layers
# act. A LoRA fused into the weights before is in the copy, and it stays there when it is taken out
# of the old layers and unloaded. There is no error and no warning. unfuse_qkv_projections leaves
# the copies in the UNet (Flux's transformer removes them).
#
# Output seen (largest change of the UNet's output against the one without the LoRA):
#   LoRA of self attention's q, k, v: projections joined, loaded 0.0, fused 0.0, unjoined 0.111;
#     loaded 0.111, fused 0.111, projections joined 0.111, LoRA unloaded 0.111, unjoined 0.0
#   LoRA of cross attention's k, v: the same with 0.143
#   LoRA of cross attention's q: projections joined, loaded 0.047, fused 0.047, unjoined 0.047;
#     loaded 0.047, fused 0.047, projections joined 0.047, LoRA unloaded 0.0, unjoined 0.0
#   weights: UNet 249268, joined 265652, unjoined 265652; Flux 68240, joined 77744, unjoined 68240
#
# What to do: fuse the LoRA into the weights first, then join the projections. Before a change of
# LoRA call unfuse_qkv_projections, and join again afterwards (it copies anew). To get the memory
# back make the UNet anew.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 transformers==5.24.0 \
  peft==0.21.2 numpy==2.4.6
cat > "$folder/finding.py" <<'PY'
from copy import deepcopy

import diffusers as d
import peft
import torch

print("torch", torch.__version__, "diffusers", d.__version__, "peft", peft.__version__)
d.utils.logging.set_verbosity_error()
torch.manual_seed(0)
torch.set_grad_enabled(False)
size = dict(block_out_channels=(16, 32), norm_num_groups=8, attention_head_dim=8)
size |= dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1)
size |= dict(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16)
part = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
part |= dict(vae=d.AutoencoderKL(), scheduler=d.EulerDiscreteScheduler(steps_offset=1))
base, x, text = d.UNet2DConditionModel(**size), torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16)
plain = base(x, 500, text).sample
load, fuse, join = "load_lora_weights", "fuse_lora", "fuse_qkv_projections"
out = ("unfuse_lora", "unload_lora_weights", "un" + join)
flux = dict(num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=16)
flux |= dict(in_channels=16, joint_attention_dim=16, pooled_projection_dim=16)


def changes(layers, *calls):
    torch.manual_seed(1)
    donor, seen = deepcopy(base), []
    names = [name for name, _ in donor.named_modules() if name.endswith(layers)]
    donor.add_adapter(peft.LoraConfig(target_modules=names, init_lora_weights=False))
    lora = {f"unet.{k}": v for k, v in peft.get_peft_model_state_dict(donor).items()}
    pipe = d.StableDiffusionPipeline(unet=deepcopy(base), **part)
    for call in calls:
        getattr(pipe, call)(*([dict(lora)] if call == load else []))
        seen.append(round(float((pipe.unet(x, 500, text).sample - plain).abs().max()), 3))
    print(layers, *(f"{call} {change};" for call, change in zip(calls, seen)))
    return [change > 0.01 for change in seen]


for layers in (("attn1.to_q", "attn1.to_k", "attn1.to_v"), ("attn2.to_k", "attn2.to_v")):
    assert changes(layers, join, load, fuse, "un" + join) == [False, False, False, True]
    assert changes(layers, load, fuse, join, *out) == [True, True, True, True, True, False]
layers = ("attn2.to_q",)
assert changes(layers, join, load, fuse, "un" + join) == [False, True, True, True]
assert changes(layers, load, fuse, join, *out) == [True, True, True, True, False, False]
for model in (base, d.FluxTransformer2DModel(**flux, axes_dims_rope=(4, 4, 8))):
    counts = [model.num_parameters()]
    for call in (join, "un" + join):
        getattr(model, call)()
        counts.append(model.num_parameters())
    print(type(model).__name__, "parameters: before, joined, unfused", counts)
    assert counts[1] > counts[0] and counts[2] == counts[model is base], "no longer as stated"
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/finding.py"
