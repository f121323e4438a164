#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2: a LoRA on a UNet wrapped by torch.compile (torch 2.14.1).
#
# The guess: `pipe.unet = torch.compile(pipe.unet)` changes the speed only. load_lora_weights loads
# a LoRA, and unload_lora_weights takes it away.
#
# What happens: it loads, as the wrapper hands the call on to the UNet. Most of the pipeline's other
# calls look at the component's class first, and the wrapper is no ModelMixin. So they pass over
# the UNet without an error: disable_lora and unload_lora_weights do nothing (nor do fuse_lora and
# delete_adapters, not run here), and get_list_adapters finds nothing. All later images are still
# made with the LoRA. It is the same whether the UNet is wrapped before the LoRA loads or after.
#
# With one block wrapped before loading, the names in it get `_orig_mod.` in front. The LoRA loads
# without that block, with a warning, and the rest of it acts.
#
# Output seen (layers of the LoRA in the UNet, and if its output is that with the LoRA; adapters
# listed; warnings; then after disable_lora; unload_lora_weights; the UNet's own unload_lora):
#   plain, in place:               16 with; 1; 0; 16 without; 0 without; 0 without
#   wrapped before, wrapped after: 16 with; 0; 0; 16 with; 16 with; 0 without
#   mid_block:                     12 neither; 1; 1; 12 without; 0 without; 0 without
#
# What to do: compile in place, with `pipe.unet.compile()` or `block.compile()`, which wrap nothing.
# Or call the model's own methods (`pipe.unet.unload_lora()`), and count the layers afterwards.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 transformers==5.24.0 \
  peft==0.21.2 numpy==2.4.6
cat > "$folder/finding.py" <<'PY'
from copy import deepcopy
from logging import getLogger
from logging.handlers import BufferingHandler

import diffusers as d
import peft
import torch

print("torch", torch.__version__, "diffusers", d.__version__, "peft", peft.__version__)
d.utils.logging.disable_default_handler()
getLogger("diffusers").addHandler(log := BufferingHandler(1000))
torch.manual_seed(0)
torch.set_grad_enabled(False)
size = dict(block_out_channels=(16, 32), norm_num_groups=8, attention_head_dim=8)
size |= dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1)
size |= dict(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16)
part = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
part |= dict(vae=d.AutoencoderKL(), scheduler=d.EulerDiscreteScheduler(steps_offset=1))
unet, x, text = d.UNet2DConditionModel(**size), torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16)
base, known = deepcopy(unet), {"without": unet(x, 500, text).sample}
unet.add_adapter(peft.LoraConfig(target_modules=["to_q", "to_k"], init_lora_weights=False))
known["with"] = unet(x, 500, text).sample
lora = {f"unet.{k}": v for k, v in peft.get_peft_model_state_dict(unet).items()}


def seen(unet):
    layers = sum(isinstance(m, peft.tuners.lora.LoraLayer) for m in unet.modules())
    same = [k for k, v in known.items() if torch.equal(unet(x, 500, text).sample, v)]
    return f"{layers} {same[0] if same else 'neither'}"


gone = ["16 with", 1, 0, "16 without", "0 without", "0 without"]
stays = ["16 with", 0, 0, "16 with", "16 with", "0 without"]
want = {"plain": gone, "in place": gone, "wrapped before": stays, "wrapped after": stays}
want["mid_block"] = ["12 neither", 1, 1, "12 without", "0 without", "0 without"]
for how, row in want.items():
    pipe, log.buffer = d.StableDiffusionPipeline(unet=deepcopy(base), **part), []
    if how == "in place":
        pipe.unet.compile(backend="eager")
    if how == "mid_block":
        pipe.unet.mid_block = torch.compile(pipe.unet.mid_block, backend="eager")
    if how == "wrapped before":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.load_lora_weights(dict(lora))
    if how == "wrapped after":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    warned = sum("unexpected keys" in record.getMessage() for record in log.buffer)
    got = [seen(pipe.unet), len(pipe.get_list_adapters()), warned]
    for call in (pipe.disable_lora, pipe.unload_lora_weights, pipe.unet.unload_lora):
        call()
        got.append(seen(pipe.unet))
    print(f"{how:15}", *got, sep="; ")
    assert got == row, "no longer as stated"
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/finding.py"
