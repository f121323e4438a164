#!/usr/bin/env bash
# diffusers 0.42.1: SkipLayerGuidance on Stable Diffusion 3's transformer (torch 2.14.1).
#
# The guess: the guider's third prediction leaves out the named blocks, as the transformer's own
# `skip_layers` does (with which StableDiffusion3Pipeline takes its `skip_guidance_layers`).
#
# What happens: a block of this transformer has two streams and returns (text, image). The hook that
# stands for a left out block (also that of `apply_layer_skip`) always returns (image, text). From
# there on the blocks take the image for the text and the text for the image, until the next left
# out block changes them back. After an odd number of them the text's tokens come out as the image:
# an error if they are not as many, else a prediction made of the prompt. After an even number the
# shape is right again. Then two neighbours are left out rightly, and of two with others between,
# those between see the streams the wrong way round: a wrong prediction without an error.
#
# Output seen (largest difference of the third prediction from the transformer's own with
# `skip_layers`, and what leaving out those blocks does at all; six blocks, 16 tokens of the image):
#   left out   text tokens  from skip_layers  effect
#   [1, 2]     5            0.000             0.144
#   [1, 3]     5            0.165             0.147
#   [1, 4]     5            0.237             0.143
#   [1]        5            RuntimeError
#   [1, 2, 3]  5            RuntimeError
#   [1]        16           2.220             0.086
#
# What to do: take `skip_guidance_layers` of StableDiffusion3Pipeline, or name blocks in pairs of
# neighbours. Compare with `skip_layers` before a result is believed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 diffusers==0.42.1 transformers==5.24.0 numpy==2.4.6
cat > "$folder/finding.py" <<'PY'
import copy

import diffusers
import torch
from diffusers import SD3Transformer2DModel
from diffusers.guiders import SkipLayerGuidance
from diffusers.hooks import LayerSkipConfig, apply_layer_skip

print("torch", torch.__version__, "diffusers", diffusers.__version__)
diffusers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
transformer = SD3Transformer2DModel(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    num_layers=6,
    num_attention_heads=2,
    attention_head_dim=8,
    joint_attention_dim=8,
    caption_projection_dim=16,
    pooled_projection_dim=8,
    pos_embed_max_size=8,
).eval()
timestep = torch.tensor([500.0])


def third(network, layers, text, fixed):
    """The guider's last prediction, which is the one without some blocks."""
    guider = SkipLayerGuidance(
        skip_layer_config=LayerSkipConfig(layers, fqn="transformer_blocks"),
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
    )
    guider.set_state(step=5, num_inference_steps=10, timestep=timestep)
    for batch in guider.prepare_inputs({"text": (text, -text)}):
        guider.prepare_models(network)
        prediction = network(**fixed, encoder_hidden_states=batch.text).sample
        guider.cleanup_models(network)
    return prediction


@torch.no_grad()
def compare(layers, tokens):
    text = torch.randn(1, tokens, 8)
    fixed = {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "pooled_projections": torch.randn(1, 8),
        "timestep": timestep,
    }
    given = fixed | {"encoder_hidden_states": text}
    own = transformer(**given, skip_layers=layers).sample
    try:
        guiders = third(copy.deepcopy(transformer), layers, text, fixed)
    except RuntimeError as error:
        return (type(error).__name__,)
    hooked = copy.deepcopy(transformer)
    apply_layer_skip(hooked, LayerSkipConfig(layers, fqn="transformer_blocks"))
    assert torch.equal(guiders, hooked(**given).sample), "no longer as stated"
    return [float((x - own).abs().max()) for x in (guiders, transformer(**given).sample)]


def row(layers, tokens):
    seen = compare(layers, tokens)
    shown = "  ".join(x if isinstance(x, str) else f"{x:.3f}" for x in seen)
    print(f"{layers!s:10} {tokens:2}  {shown}")
    return seen[0]


assert row([1, 2], 5) == 0.0, "no longer as stated"
assert row([1, 3], 5) > 0.01, "no longer as stated"
assert row([1, 4], 5) > 0.01, "no longer as stated"
assert row([1], 5) == "RuntimeError", "no longer as stated"
assert row([1, 2, 3], 5) == "RuntimeError", "no longer as stated"
assert row([1], 16) > 0.01, "no longer as stated"
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/finding.py"
