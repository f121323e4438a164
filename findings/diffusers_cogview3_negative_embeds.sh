#!/usr/bin/env bash
# diffusers 0.42.1: `negative_prompt_embeds` of CogView3PlusPipeline (torch 2.14.1).
#
# The guess: the unconditional half sees the embeddings that are given, as in other pipelines
# (CogView4Pipeline too), and as the argument's description says.
#
# What happens: if guidance is on and `negative_prompt` is None, the negative embeddings are
# replaced by zeros, given or not. Giving both is an error, and so are a prompt's text and negative
# embeddings. So there is no call in which `negative_prompt_embeds` have an effect: whatever they
# are, the image is the same to the last bit, without a warning. Only the text `negative_prompt`
# works.
#
# Output seen (largest difference of the latents, whose standard deviation is about 1, from those
# with other negative embeddings):
#                                      others  zeros  the prompt's
#   CogView3PlusPipeline               0.000   0.000  0.000
#   CogView4Pipeline                   0.421   0.613  0.452
#   CogView3Plus, embeddings as given  0.225   0.321  0.304
#
# What to do: give the negative prompt as text. If it must be embeddings, set the pipeline's
# `encode_prompt` to a function that returns both as they were given (the last row above).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 transformers==5.24.0 numpy==2.4.6
cat > "$folder/finding.py" <<'PY'
import diffusers
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)

print("torch", torch.__version__, "diffusers", diffusers.__version__)
diffusers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
size = dict(
    num_attention_heads=2,
    attention_head_dim=8,
    in_channels=4,
    out_channels=4,
    num_layers=1,
    text_embed_dim=8,
    time_embed_dim=8,
    condition_dim=2,
    pos_embed_max_size=8,
    sample_size=8,
)
absent = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
three = CogView3PlusPipeline(
    **absent,
    transformer=CogView3PlusTransformer2DModel(**size).eval(),
    scheduler=CogVideoXDDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True
    ),
)
four = CogView4Pipeline(
    **absent,
    transformer=CogView4Transformer2DModel(**size, rope_axes_dim=(16, 16)).eval(),
    scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
)
prompt, negative, another = torch.randn(3, 1, 5, 8).unbind()
latents = torch.randn(1, 4, 4, 4)


def image(pipe, text):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt_embeds=prompt,
        negative_prompt_embeds=text,
        latents=latents,
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=5.0,
        output_type="latent",
    ).images


def differences(name, pipe):
    first = image(pipe, negative)
    others = [image(pipe, text) for text in (another, torch.zeros_like(prompt), prompt)]
    far = [float((first - other).abs().max()) for other in others]
    print(f"{name:36} {far[0]:.3f}  {far[1]:.3f}  {far[2]:.3f}  of {first.std():.2f}")
    return far


def as_given(*_, prompt_embeds, negative_prompt_embeds, **__):
    return prompt_embeds, negative_prompt_embeds


assert max(differences("CogView3PlusPipeline", three)) == 0.0, "no longer as stated"
assert min(differences("CogView4Pipeline", four)) > 0.01, "no longer as stated"
three.encode_prompt = as_given
assert min(differences("CogView3Plus, embeddings as given", three)) > 0.01, "no longer as stated"
for more in ({"prompt": "a star"}, {"prompt_embeds": prompt, "negative_prompt": "a ring"}):
    try:
        three(**more, negative_prompt_embeds=negative, height=32, width=32)
    except ValueError as error:
        print("ValueError:", str(error)[:34])
    else:
        raise AssertionError("no longer as stated")
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/finding.py"
