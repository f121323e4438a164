#!/usr/bin/env bash
# diffusers 0.42.1: a modular Stable Diffusion 3 pipeline without a negative prompt (torch 2.14.1).
#
# The guess: its guider is on, with a scale of 7, so a call with a prompt alone is guided, against
# the empty text, as StableDiffusion3Pipeline does it.
#
# What happens: without a negative prompt the text step makes no negative embeddings, and the
# denoising step gives the guider the prompt's for both predictions. The two are the same, and
# c + 6 (c - c) is c: the image is that of no guidance at all, without a warning. It costs two
# evaluations a step all the same, and `guider.num_conditions` says 2. With `negative_prompt=""` the
# image is the one of StableDiffusion3Pipeline.
#
# Output seen (same weights, prompt and noise; the largest difference of the modular pipeline's
# latents from those of StableDiffusion3Pipeline, whose standard deviation is about 1.3):
#   negative prompt  from scale 7  from scale 1  evaluations in 4 steps
#   not given        1.064         0.000         8
#   ''               0.000         1.064         8
#
# What to do: always give `negative_prompt=""` (or negative embeddings, if the prompt's are given).
# A count of evaluations does not find this; change the guider's scale and see that the image does.
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
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3ModularPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.modular_pipelines.stable_diffusion_3 import StableDiffusion3AutoBlocks
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

print("torch", torch.__version__, "diffusers", diffusers.__version__)
diffusers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
words = {word: place for place, word in enumerate(("<pad>", "<end>", "<unk>", "a", "red", "star"))}
reader = Tokenizer(WordLevel(words, unk_token="<unk>"))
reader.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=reader,
    model_max_length=8,
    pad_token="<pad>",
    eos_token="<end>",
    unk_token="<unk>",
)


def text_encoder():
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        projection_dim=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    return CLIPTextModelWithProjection(config).eval()


parts = {
    "tokenizer": tokenizer,
    "tokenizer_2": tokenizer,
    "tokenizer_3": None,
    "text_encoder": text_encoder(),
    "text_encoder_2": text_encoder(),
    "text_encoder_3": None,
    "vae": AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=4).eval(),
    "transformer": SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    ).eval(),
    "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
}
blocks = StableDiffusion3AutoBlocks()
blocks.sub_blocks.pop("decode")
modular = StableDiffusion3ModularPipeline(blocks=blocks)
modular.update_components(**parts)
usual = StableDiffusion3Pipeline(**parts)
usual.set_progress_bar_config(disable=True)
evaluations = []
parts["transformer"].register_forward_hook(lambda *_: evaluations.append(1))
same = {
    "prompt": "a red star",
    "latents": torch.randn(1, 4, 8, 8),
    "height": 8,
    "width": 8,
    "num_inference_steps": 4,
}
assert modular.guider.config.enabled and modular.guider.num_conditions == 2
scale = modular.guider.guidance_scale
guided, unguided = (
    usual(**same, guidance_scale=s, output_type="latent").images for s in (scale, 1.0)
)
seen = {}
for name, more in (("not given", {}), ("''", {"negative_prompt": ""})):
    evaluations.clear()
    made = modular(**same, **more, output="latents")
    seen[name] = [float((made - other).abs().max()) for other in (guided, unguided)]
    print(f"{name:16} {seen[name][0]:.3f}  {seen[name][1]:.3f}  {len(evaluations)}")
    assert len(evaluations) == 8, "no longer as stated"
assert scale == 7.0, "no longer as stated"
assert seen["not given"][0] > 0.1 and seen["not given"][1] < 1e-4, "no longer as stated"
assert seen["''"][0] < 1e-4 and seen["''"][1] > 0.1, "no longer as stated"
PY
HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$folder/venv/bin/python" "$folder/finding.py"
