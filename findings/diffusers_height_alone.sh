#!/usr/bin/env bash
# diffusers 0.42.1, StableDiffusionPipeline: `height=128` without `width` (torch 2.14.1).
#
# The guess: the side that is given is kept, and the other one is the model's default. The
# docstring says so of each side: "defaults to self.unet.config.sample_size * vae_scale_factor".
#
# What happens: `if not height or not width` sets both to the default. The height that was given is
# lost, without a warning. The same holds for `width` alone. Read from the source of 0.42.1: of
# the 231 pipeline classes whose call takes both sides (deprecated ones counted), this condition
# stands in StableDiffusionPipeline alone. 115 fill in each side by itself (`height or ...`): SDXL,
# SD3, Flux, PixArt, QwenImage, CogVideoX, Stable Diffusion's inpainting, PAG and LCM pipelines. 87
# have a number as the default of each side: Wan, HunyuanVideo, LTX, Sana, Kandinsky. All of these
# keep the side (some, as PixArt and Sana, then bin the size). Most of the others take what is
# missing from their image. Exceptions: BriaFiboEditPipeline and JoyImageEditPlusPipeline replace
# a side given alone by the image's, QwenImageEditInpaintPipeline replaces even both sides, and
# HunyuanVideo15Pipeline refuses one side with a ValueError.
#
# Output seen (height x width; the models' default is 64 x 64):
#   StableDiffusionPipeline height=128 -> 64x64; width=128 -> 64x64; height=128 width=64 -> 128x64;
#   StableDiffusionPAGPipeline height=128 -> 128x64; width=128 -> 64x128; ... -> 128x64;
#   StableDiffusionXLPipeline and FluxPipeline the same as PAG
#   replace both sides: ['pipeline_stable_diffusion.py']
#
# What to do: give both sides or none, and look at the size of the image that comes back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 transformers==5.24.0 numpy==2.4.6
cat > "$folder/finding.py" <<'PY'
from pathlib import Path

import diffusers as d
import torch

print("torch", torch.__version__, "diffusers", d.__version__)
d.utils.logging.set_verbosity_error()
torch.manual_seed(0)
wide = dict(block_out_channels=(8, 16), norm_num_groups=8)
down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
vae = d.AutoencoderKL(**wide, down_block_types=down, up_block_types=up, shift_factor=0.0)
unet = dict(wide, sample_size=32, cross_attention_dim=16, attention_head_dim=8, layers_per_block=1)
unet |= dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"))
unet |= dict(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
added = dict(addition_embed_type="text_time", addition_time_embed_dim=8)
xl_unet = unet | added | dict(projection_class_embeddings_input_dim=16 + 6 * 8)
flow = dict(in_channels=16, num_layers=1, num_single_layers=1, num_attention_heads=2)
flow |= dict(attention_head_dim=16, joint_attention_dim=16, pooled_projection_dim=16)
flow = d.FluxTransformer2DModel(**flow, axes_dims_rope=(4, 4, 8))
euler = d.EulerDiscreteScheduler(steps_offset=1)
one = dict(vae=vae, text_encoder=None, tokenizer=None)
two = one | dict(text_encoder_2=None, tokenizer_2=None)
sd = one | dict(unet=d.UNet2DConditionModel(**unet), scheduler=euler, safety_checker=None)
sd |= dict(feature_extractor=None, requires_safety_checker=False)
xl = two | dict(unet=d.UNet2DConditionModel(**xl_unet), scheduler=euler)
flux = d.FluxPipeline(**two, transformer=flow, scheduler=d.FlowMatchEulerDiscreteScheduler())
flux.default_sample_size = 32  # 128 otherwise, for every Flux
pooled = dict(pooled_prompt_embeds=torch.randn(1, 16))
call = dict(prompt_embeds=torch.randn(1, 4, 16), num_inference_steps=1, guidance_scale=1.0)
asked = ("height=128", "width=128", "height=128 width=64")
lost, kept = [(64, 64), (64, 64)], [(128, 64), (64, 128)]
for pipe, more, want in (
    (d.StableDiffusionPipeline(**sd), {}, lost),
    (d.StableDiffusionPAGPipeline(**sd), {}, kept),
    (d.StableDiffusionXLPipeline(**xl), pooled, kept),
    (flux, pooled, kept),
):
    pipe.set_progress_bar_config(disable=True)
    sides = ({"height": 128}, {"width": 128}, {"height": 128, "width": 64})
    sizes = [pipe(**call, **more, **side, output_type="np").images.shape[1:3] for side in sides]
    print(type(pipe).__name__, *(f"{k} -> {h}x{w};" for k, (h, w) in zip(asked, sizes)))
    assert sizes == [*want, (128, 64)], "no longer as stated"
sources = Path(d.__file__).parent.rglob("pipeline_*.py")
both = [f.name for f in sources if "if not height or not width" in f.read_text()]
print("replace both sides:", both)
assert both == ["pipeline_stable_diffusion.py"], "no longer as stated"
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/finding.py"
