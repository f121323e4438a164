#!/usr/bin/env bash
# diffusers 0.42.1: StableDiffusionPanoramaPipeline with more than one image a call (torch 2.14.1).
#
# The guess: two prompts give two images, each as in a call of its own with the same noise. So does
# StableDiffusionPipeline.
#
# What happens: the texts are the two negative ones, then the two prompts, but the latents are
# 1, 1, 2, 2, and every second prediction is taken for the unconditional one. Image 1 is made of the
# two negative texts and of no prompt: the image of the negative prompt without guidance. Image 2
# has prompt 1 for its negative prompt. With one prompt and `num_images_per_prompt=2` there is no
# guidance: image 1 is that of the negative prompt alone and image 2 that of the prompt alone.
# There is no error, and with one image a call all is well. The class is marked as deprecated (it is
# no longer developed), but diffusers still has it at the top.
#
# Output seen (largest difference of the latents, whose standard deviation is about 18):
#   image and what it is compared with               StableDiffusion  Panorama
#   1 and its own call                               0.00             34.27
#   2 and its own call                               0.00             24.63
#   1 and the negative text, unguided                33.67            0.00
#   2 and prompt 2 against prompt 1                  24.92            0.00
#   one prompt: 1 and its own call                   0.00             34.27
#   one prompt: 2 and its own call                   0.00             24.56
#   one prompt: 1 and the negative text, unguided    33.67            0.00
#   one prompt: 2 and the prompt, unguided           24.88            0.00
#
# What to do: one prompt and one image a call.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 transformers==5.24.0 numpy==2.4.6
cat > "$folder/finding.py" <<'PY'
import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPanoramaPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

print("torch", torch.__version__, "diffusers", diffusers.__version__)
diffusers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
parts = dict.fromkeys(("tokenizer", "text_encoder", "safety_checker", "feature_extractor"))
parts |= {
    "vae": AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=4,
    ),
    "unet": UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    ).eval(),
    "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
    "requires_safety_checker": False,
}
one, two, negative = torch.randn(3, 1, 4, 8).unbind()
noise = torch.randn(2, 4, 8, 72)  # Two windows of 64.


def latents(kind, prompts, negatives, start, scale=7.5, **more):
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt_embeds=prompts,
        negative_prompt_embeds=negatives,
        latents=start,
        guidance_scale=scale,
        height=64,
        width=576,
        num_inference_steps=4,
        output_type="latent",
        **more,
    ).images


def look(kind):
    """Differences by what is compared."""

    def alone(image, prompt, against=negative, scale=7.5):
        return latents(kind, prompt, against, noise[image : image + 1], scale)

    prompts, negatives = torch.cat([one, two]), torch.cat([negative, negative])
    pair = latents(kind, prompts, negatives, noise)
    twice = latents(kind, one, negative, noise, num_images_per_prompt=2)
    compared = {
        "1 and its own call": (pair[0], alone(0, one)),
        "2 and its own call": (pair[1], alone(1, two)),
        "1 and the negative text, unguided": (pair[0], alone(0, negative, scale=1.0)),
        "2 and prompt 2 against prompt 1": (pair[1], alone(1, two, against=one)),
        "one prompt: 1 and its own call": (twice[0], alone(0, one)),
        "one prompt: 2 and its own call": (twice[1], alone(1, one)),
        "one prompt: 1 and the negative text, unguided": (twice[0], alone(0, negative, scale=1.0)),
        "one prompt: 2 and the prompt, unguided": (twice[1], alone(1, one, scale=1.0)),
    }
    print(f"{kind.__name__}, standard deviation {pair.std():.1f}")
    far = {name: float((a - b[0]).abs().max()) for name, (a, b) in compared.items()}
    for name, value in far.items():
        print(f"  {name:46} {value:.2f}")
    return [value < 1e-3 for value in far.values()]


right = [True, True, False, False, True, True, False, False]
assert look(StableDiffusionPipeline) == right, "no longer as stated"
assert look(StableDiffusionPanoramaPipeline) == [not same for same in right], "no longer as stated"
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/finding.py"
